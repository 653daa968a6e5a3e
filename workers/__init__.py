"""The processes of the network, one module each, each a FastStream app: `faststream run workers.negotiator:app`."""
