"""The Gateway's brain: pure, no I/O, no asyncio, no clock. Begin reading at gateway/gateway.py."""
