"""Images on the move: pull, push, import, export, tag, and unpacking into snapshots."""
