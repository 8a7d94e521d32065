"""Errors as the APIs answer them."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from fewstep.errors import FewstepError, plain
from fewstep.server.asking import Gone, status_of
from fewstep.server.guard import error_document
from fewstep.server.work import Busy

INVALID, LIMIT = "invalid_request_error", "rate_limit_error"
BODIES = {"json_invalid": "the body is not JSON", "missing": "the request has no body"}  # pydantic's type of error: why
FIELDS = {"extra_forbidden": "there is no field {}", "missing": "{} is required"}  # likewise, of a field
NO_OBJECT = "the body is not a JSON object"
JSON_HINT = "send a JSON object, with the header content-type: application/json"


def document_of(error: FewstepError, spelling: Mapping[str, str] | None = None) -> dict[str, Any]:
    """An error as data. spelling: what an API calls fields of ours."""
    names = spelling or {}

    def spell(field: str) -> str:
        return names.get(field, plain(field))

    kind = LIMIT if isinstance(error, Busy) else INVALID
    return error_document(
        error.message.spelled(spell), error.hint.spelled(spell), error.field and spell(error.field), kind
    )


def answer(error: FewstepError, spelling: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer to a request that cannot be drawn."""
    headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, Busy) else {}
    return JSONResponse(document_of(error, spelling), 429 if headers else status_of(error), headers)


def install(app: FastAPI, spellings: Mapping[str, Mapping[str, str]]) -> None:
    """Answer every kind of error in one shape. spellings: for paths that begin so, what they call fields of ours."""

    def spelling(request: Request) -> Mapping[str, str]:
        return next((names for start, names in spellings.items() if request.url.path.startswith(start)), {})

    @app.exception_handler(FewstepError)
    async def fewstep_error(request: Request, error: FewstepError) -> Response:
        return answer(error, spelling(request))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        fields = [str(part) for part in first["loc"] if part != "body" and not isinstance(part, int)]
        if not fields:
            return JSONResponse(error_document(BODIES.get(first["type"], NO_OBJECT), JSON_HINT, None, INVALID), 400)
        message = FIELDS.get(first["type"], "{}: {}").format(fields[0], first["msg"])
        return JSONResponse(error_document(message, "see /docs for what it takes", fields[0], INVALID), 400)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return JSONResponse(error_document(str(error.detail), "see /docs", None, INVALID), error.status_code)

    @app.exception_handler(Gone)
    async def gone(request: Request, error: Gone) -> Response:
        return Response(status_code=499)
