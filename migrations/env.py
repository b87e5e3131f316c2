"""Run migrations on the connection that `imgdb.db.schema` hands over.

No logging is configured, nothing is printed, and a transaction that is open stays open: this
may run inside a host application. Only the alembic command of a developer, who has no
connection to hand over, gets an engine from alembic.ini.
"""

from alembic import context
from sqlalchemy import Connection, create_engine

from imgdb.db import models, schema


def _include_name(name: str | None, type_: str, _parents: object) -> bool:
    return type_ != "table" or schema.owns(name)


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=models.Base.metadata,
        version_table=schema.VERSION_TABLE,
        include_name=_include_name,
        render_as_batch=True,
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def _run_for_developer() -> None:
    engine = create_engine(context.config.get_main_option("sqlalchemy.url") or "sqlite://")
    with engine.begin() as connection:
        _run(connection)


_handed = context.config.attributes.get("connection")
if _handed is None:
    _run_for_developer()
else:
    _run(_handed)
