"""The task metadata endpoint, version 4: answers with what FILE says at the time.

metadata.py FILE ADDRESS PORT; FILE is the task's JSON, whose first container is the one that asks.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FILE, ADDRESS, PORT = sys.argv[1], sys.argv[2], int(sys.argv[3])


class Endpoint(BaseHTTPRequestHandler):
    def do_GET(self):
        with open(FILE, encoding="utf-8") as file:
            task = json.load(file)
        answers = {"/v4/id": task["Containers"][0], "/v4/id/task": task}
        if self.path not in answers:
            self.send_error(404)
            return
        body = json.dumps(answers[self.path]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


ThreadingHTTPServer((ADDRESS, PORT), Endpoint).serve_forever()
