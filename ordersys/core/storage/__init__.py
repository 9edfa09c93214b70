"""SQLite and PostgreSQL: engines, migrations, statements, and who may do what there."""
