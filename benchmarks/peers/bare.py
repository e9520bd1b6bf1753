"""The least that HTTP costs: a FastAPI route that answers every POST /recommend with the same bytes.

python -m benchmarks.peers.bare PORT FILE      the answer is the content of the file
"""

import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response


def main() -> None:
    port, answer = int(sys.argv[1]), Path(sys.argv[2]).read_bytes()
    app = FastAPI()

    @app.post("/recommend")
    async def recommend(request: Request) -> Response:
        await request.body()
        return Response(answer, media_type="application/json")

    uvicorn.run(app, port=port, loop="uvloop", http="httptools", log_config=None, access_log=False)


if __name__ == "__main__":
    main()
