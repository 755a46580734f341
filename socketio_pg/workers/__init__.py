"""The worker processes of one gunicorn, which together are one node, and what they send each other over Unix sockets.

In: gunicorn's hooks, which prepare the node in the master and join it in each worker.
Out: the workers that are there and the one that leads (`node.py`), messages, questions and descriptors between them
(`peers.py`), and counts of the whole node (`counts.py`). With one worker only `local_counts.py` is used.

Open `workers.py` first.
"""
