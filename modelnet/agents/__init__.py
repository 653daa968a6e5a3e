"""The protocols of agents and tools, inwards and outwards: MCP and A2A. Needs the extra `agents`."""
