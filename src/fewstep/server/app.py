"""The server's application: its routes, and the worker that runs as long as it does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles

from fewstep import __version__
from fewstep.configs import ServeConfig
from fewstep.engines import for_changing_loras
from fewstep.server import a1111, errors, metrics, native, openai
from fewstep.server.asking import Desk
from fewstep.server.guard import Guard
from fewstep.server.offer import Offer
from fewstep.server.work import Queue, Worker

PAGE = Path(__file__).with_name("page")
MB = 1_000_000


def new_app(config: ServeConfig, load: bool = True) -> FastAPI:
    """The application. load: open the model before the first request."""
    offer, queue = Offer.of(config), Queue(config.queue)
    where = config.where.model_copy(update={"engine": for_changing_loras(config.engine)})
    worker = Worker(queue, where, config.batch_size, config.gather_ms / 1000)
    if load:
        worker.open()

    @asynccontextmanager
    async def working(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        queue.close()
        await asyncio.to_thread(worker.join)

    app = FastAPI(
        title="fewstep",
        version=__version__,
        description="Pictures in a few steps.",
        lifespan=working,
        max_body_size=int(config.max_body_mb * MB),
        redoc_url=None,
    )
    app.add_middleware(Guard, host=config.host, key=config.api_key)
    errors.install(app, {"/v1/images": openai.SPELLINGS, "/sdapi": a1111.SPELLINGS})
    desk = Desk(config, offer, queue)
    for module in (native, openai, a1111):
        app.include_router(module.routes(desk))

    @app.get("/healthz", tags=["server"])
    async def health() -> dict[str, Any]:
        """Whether pictures can be drawn."""
        return {"status": "ok" if worker.is_alive() else "stopped", "fewstep": __version__}

    @app.get("/metrics", tags=["server"])
    async def counts() -> Response:
        """What the server counts, for Prometheus."""
        return PlainTextResponse(metrics.text())

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response((PAGE / "index.html").read_bytes(), media_type="text/html")

    app.mount("/page", StaticFiles(directory=PAGE))
    return app
