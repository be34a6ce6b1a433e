"""The service behind `gaia-fast serve`: pictures by HTTP in, class, score and decision out.

One process (`server.py`) answers requests (`app.py`): it receives bodies (`receiving.py`), decodes pictures
(`pictures.py`, in the threads of `decoding.py`), puts together what waits (`batching.py`) for a pool of replicas
(`pool.py`), and reports (`metrics.py`, `page/`). Detectors run in replicas (`replica.py`), processes that Ray Serve
starts, watches and replaces (`ray_serve.py`).
"""
