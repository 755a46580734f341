"""Flask routes: the HTTP API and its OpenAPI document, health, metrics, the playground and the demos.

In: HTTP requests with a token or without, and the health of the server's parts.
Out: JSON responses as in docs/http.md, Prometheus text, and the files of `static/`.

Open `api.py` for publish and replay, `pages.py` for health, metrics and the playground, `openapi.py` for the document.
"""
