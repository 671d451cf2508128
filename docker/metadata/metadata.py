"""ECS's task metadata endpoint, version 4, for a task that never changes: two documents, which stand beside this file."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HERE = Path(__file__).parent
DOCUMENTS = {
    "/v4/hostward": HERE / "container.json",
    "/v4/hostward/task": HERE / "task.json",
}


class Endpoint(BaseHTTPRequestHandler):
    """Answers GET with a document, or with 404."""

    def do_GET(self):
        document = DOCUMENTS.get(self.path)
        content = document.read_bytes() if document else b"null"
        self.send_response(200 if document else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


ThreadingHTTPServer(("", 80), Endpoint).serve_forever()
