"""A client: publish a task, read its stream, take its result. Needs a network and `modelnet work examples/upper.py`."""

import asyncio

import modelnet


async def main() -> None:
    """Have a text put into capital letters."""
    async with modelnet.connect() as net:
        task = await net.submit("text.upper", {"text": "hello, network"}, budget=10, deadline_s=5)
        async for event in task.stream():
            print(event.kind)
        final = await task.result()
        print(final.output, "by", final.worker, "for", final.price)


if __name__ == "__main__":
    asyncio.run(main())
