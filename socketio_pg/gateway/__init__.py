"""The boundary between connected clients and the core: admission, limits, event handlers, delivery, gauges.

In: requests and events of clients from `protocol`, messages and gaps from `pubsub`.
Out: answers with wire codes, subscriptions and publications in `pubsub`, events in the rooms of `protocol/fanout`.

Open `handlers.py` for the events that clients send, `delivery.py` for those that they get. `admission.py` decides about
requests before that, `lifecycle.py` follows a client from CONNECT to disconnect.
"""
