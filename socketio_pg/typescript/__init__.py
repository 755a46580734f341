"""TypeScript for watched tables: the declarations that ``socketio-pg types`` writes.

In: a connection to the database, whose catalog and watches are read.
Out: the text of a TypeScript file, equal for equal tables and watches.

Open `declarations.py` first: the file as a whole. `catalog.py` reads the database, `values.py` has the type of a value
as it arrives in JSON, `names.py` the identifiers and how texts are quoted.
"""
