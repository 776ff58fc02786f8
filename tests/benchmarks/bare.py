"""The bare minimum to measure against: a FastAPI route that does nothing, served the way ours is."""

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI, Request

app = FastAPI(openapi_url=None)


@app.get("/task")
async def task() -> dict[str, Any]:
    return {"request_id": "r", "output": {"task_id": "t", "task_status": "PENDING"}}


@app.post("/create")
async def create(request: Request) -> dict[str, Any]:
    await request.json()
    return {"request_id": "r", "output": {"task_id": "t", "task_status": "PENDING"}}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="error")
