"""Live tables: the rows of a watched table as a subscriber may see them, and the changes that follow.

In: requests of clients with their claims, messages of the log. Out: pages of rows, and for each change what a client
gets of it. `gateway/live_tables` sends them. Begin with `feed`.
"""
