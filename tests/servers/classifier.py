"""A service for pictures as most people write it: FastAPI, Pillow, and a model that was loaded at the start.

CLASSIFIER=weights.npz uvicorn tests.servers.classifier:app
"""

import base64
import io
import os
from typing import Annotated, Any

import numpy as np
from fastapi import Body, FastAPI, File, Form, Header, HTTPException, Request, UploadFile
from PIL import Image

with np.load(os.environ["CLASSIFIER"]) as weights:
    WEIGHT, BIAS, NAMES = weights["weight"], weights["bias"], weights["names"].tolist()
SIDE = 8

app = FastAPI()
served = {"requests": 0, "pictures": 0}
trouble: list[int] = []  # statuses of the next requests; 0 answers well


@app.middleware("http")
async def troubled(request: Request, answer: Any) -> Any:
    from fastapi.responses import JSONResponse

    if request.method == "GET":
        return await answer(request)
    served["requests"] += 1
    status = trouble.pop(0) if trouble else 0
    if status == 429:
        return JSONResponse({"detail": "too many requests"}, 429, {"Retry-After": "0"})
    done = await answer(request)
    return JSONResponse({"detail": "broken"}, status) if status else done


@app.get("/served")
def bill() -> dict[str, int]:
    return served


@app.get("/trouble")
def plan(statuses: str) -> list[int]:
    trouble[:] = [int(status) for status in statuses.split(",")]
    return trouble


def predict(file: bytes) -> dict[str, float]:
    """The probability of each name."""
    served["pictures"] += 1
    try:
        picture = Image.open(io.BytesIO(file)).convert("RGB")
    except OSError as error:
        raise HTTPException(400, "no picture") from error
    if picture.size != (SIDE, SIDE):
        raise HTTPException(422, f"expected {SIDE}x{SIDE}, got {picture.size}")
    row = np.asarray(picture, np.float64).ravel() / 255 @ WEIGHT + BIAS
    powers = np.exp(row - row.max())
    return dict(zip(NAMES, (powers / powers.sum()).tolist(), strict=True))


def best(scores: dict[str, float]) -> str:
    return max(scores, key=lambda name: scores[name])


@app.post("/predict")
async def upload(file: UploadFile) -> dict[str, Any]:
    scores = predict(await file.read())
    return {"class": best(scores), "confidence": scores[best(scores)], "filename": file.filename}


@app.post("/batch")
async def uploads(
    files: Annotated[list[UploadFile], File()], model: Annotated[str, Form()]
) -> dict[str, Any]:
    if model != "v2":
        raise HTTPException(422, f"no model {model}")
    return {"results": [{"scores": predict(await file.read())} for file in files]}


@app.post("/classify")
def encoded(image: Annotated[str, Body(embed=True)]) -> dict[str, str]:
    return {"label": best(predict(base64.b64decode(image)))}


@app.post("/url")
def data_url(request: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
    url = request["input"]["image_url"]["url"]
    head, _, data = url.partition(",")
    if head not in ("data:image/jpeg;base64", "data:image/png;base64"):
        raise HTTPException(422, f"no picture in {head}")
    scores = predict(base64.b64decode(data))
    ranking = sorted(scores, key=lambda name: -scores[name])[: request["top"]]
    return {"choices": [{"name": name, "p": scores[name]} for name in ranking]}


@app.post("/raw")
async def body(
    request: Request, top: int = 0, options: str = "", x_model: Annotated[str, Header()] = ""
) -> Any:
    kind = request.headers["content-type"]
    if kind not in ("image/png", "image/jpeg") or x_model != "v2" or options != '{"soft":true}' or top != 1:
        raise HTTPException(415, f"cannot take {kind} with {x_model}, {options} and {top}")
    return {"predictions": predict(await request.body())}


@app.post("/form")
def form(image: Annotated[str, Form()], details: Annotated[str, Form()]) -> dict[str, Any]:
    import json

    return {"details": json.loads(details), "probabilities": list(predict(base64.b64decode(image)).values())}


@app.post("/binary")
async def binary(file: UploadFile) -> dict[str, float]:
    """The probability of the first name against all others."""
    return {"probability": predict(await file.read())[NAMES[0]]}


@app.post("/v1/chat/completions")
def chat(request: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
    """A language model that sees images, as many gateways serve it."""
    parts = request["messages"][-1]["content"]
    url = next(part["image_url"]["url"] for part in parts if part["type"] == "image_url")
    said = best(predict(base64.b64decode(url.partition("base64,")[2])))
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": said}}]}
