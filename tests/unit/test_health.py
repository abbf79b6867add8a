"""The health endpoint."""

from __future__ import annotations

import asyncio

import aiohttp

from wherry_operator.health import HealthServer


def _broken() -> str:
    raise RuntimeError("bug")


def test_each_check_is_named_and_one_complaint_fails_them_all() -> None:
    async def run() -> None:
        server = HealthServer(
            "127.0.0.1",
            0,
            live={"loop": lambda: ""},
            ready={"loop": lambda: "", "leader": lambda: "nobody leads", "bug": _broken},
        )
        port = await server.start()
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            async with session.get("/livez") as response:
                assert (response.status, await response.text()) == (200, "[+]loop ok\nlivez check passed\n")
            async with session.get("/readyz") as response:
                assert response.status == 500
                assert await response.text() == (
                    "[+]loop ok\n[-]leader failed: nobody leads\n[-]bug failed: RuntimeError\nreadyz check failed\n"
                )
        await server.close()

    asyncio.run(run())
