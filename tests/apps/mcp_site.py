"""An MCP server at /mcp whose protection against DNS rebinding admits the host that ALLOWED_HOSTS names.

Without ALLOWED_HOSTS it is the SDK's own choice: localhost, with any port.
"""

import os

from mcp.server.mcpserver import MCPServer
from mcp.server.transport_security import TransportSecuritySettings

from witness import Asgi

server = MCPServer("echo")


@server.tool()
def echo(text: str) -> str:
    """Gives back what it gets."""
    return text


hosts = os.environ.get("ALLOWED_HOSTS")
security = TransportSecuritySettings(allowed_hosts=[hosts]) if hosts else None
application = Asgi(
    server.streamable_http_app(json_response=True, stateless_http=True, transport_security=security)
)
