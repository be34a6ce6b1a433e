"""The service behind `gaia-fast serve`: pictures by HTTP in, class, score and decision out.

One process reads requests (`app.py`), decodes pictures (`pictures.py`), puts together what waits (`batching.py`), and
reports (`metrics.py`, `page/`); detectors run in replicas (`replica.py`), processes that Ray Serve starts, watches and
replaces (`ray_serve.py`).
"""
