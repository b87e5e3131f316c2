"""${message}"""

# The rules of the house for migrations:
#  * Tables, columns, constraints and indexes only; triggers and views are made anew by
#    imgdb.db.schema after every upgrade. A release that changes one of them needs a revision
#    too, if only an empty one, or existing databases would keep the old one.
#  * Every name is explicit and begins with imgdb_. No table of a host is touched or named.
#  * Within a major version only add, each new column nullable or with a server default.
#    Older imgdb versions may keep reading, or raise min_reader and min_writer in imgdb_meta.
#  * No table that others refer to is rewritten (batch_alter_table, which copies and drops it):
#    with foreign keys on, that deletes or orphans the rows that refer to it.
#  * downgrade() undoes upgrade(); no ON DELETE CASCADE; no BEGIN, no COMMIT, no PRAGMA, no print.
#  * Rows are filled by SQL written here, never by the models, which will have moved on.
#  * The revision is the next number in four digits; append it to REVISIONS in imgdb/db/schema.py,
#    then freeze a database for the tests: python tests/db/freeze.py.

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    """${message}."""
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    """Undo `upgrade`."""
    ${downgrades if downgrades else "pass"}
