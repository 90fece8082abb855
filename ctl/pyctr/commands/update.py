"""`update`: what can be changed about a container that is there."""

import click

from pyctr import arguments, completing
from pyctr.connection import ENGINE
from pyctr.session import Session, pass_session
from pyctr.several import each
from pyctr_wire.pyctr import engine_pb2


@click.command()
@click.option(
    "--restart",
    "policy",
    required=True,
    metavar="POLICY",
    shell_complete=completing.restart_policies,
    help="When it is started again: no, always, unless-stopped, on-failure[:RETRIES].",
)
@arguments.containers
@pass_session
def update(session: Session, *, containers: tuple[str, ...], policy: str) -> int:
    """Change when containers are started again after they have ended.

    One that does not run is left as it is; the policy holds from its next start.
    """

    def one(reference: str) -> None:
        request = engine_pb2.RestartPolicyRequest(id=reference, policy=policy)
        session.connection.call(ENGINE, "RestartPolicy", request, engine_pb2.RestartPolicyResponse)

    return each(containers, one)
