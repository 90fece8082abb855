"""What a rebuilt database knows too little about is kept for a day, for its owners to claim it."""

from datetime import timedelta
from typing import Final

from pyctrd.core.leases import EXPIRE_LABEL
from pyctrd.core.times import to_microseconds
from pyctrd.metadata.database import Transaction
from pyctrd.metadata.rows import encode_labels, ensure_namespace

GRACE: Final = timedelta(hours=24)


def rebuilt_lease(transaction: Transaction, ns: str) -> str:
    """Return the id of the lease, made if it is not there, that holds in `ns` what a rebuild has found."""
    lease = f"rebuilt-{transaction.now:%Y%m%dT%H%M%SZ}"
    ensure_namespace(transaction, ns)
    labels = encode_labels({EXPIRE_LABEL: (transaction.now + GRACE).isoformat()})
    transaction.execute(
        "INSERT OR IGNORE INTO leases (ns, id, labels, created_at) VALUES (?, ?, ?, ?)",
        (ns, lease, labels, to_microseconds(transaction.now)),
    )
    return lease
