"""A stand-in for W&B's server, as much as the client 0.31 asks for; it can be slow, fail, hang or go away.

A run's history is kept as the real one keeps it: lines, each chunk written at the offset that the client gives.
"""

import gzip
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "0123456789" * 4


class Server:
    """with Server() as server: server.environment for the client, server.runs[id] for what it sent."""

    def __init__(self):
        self.runs = {}  # id -> list of history rows
        self.config = {}  # id -> dict
        self.summary = {}  # id -> dict
        self.mode = "ok"  # ok slow error hang
        self.asked = []  # what for, in order
        self.released = threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"store": self}))
        self.http.daemon_threads = True
        self.http.handle_error = lambda *arguments: None  # the client closes connections as it likes
        self.environment = {"WANDB_BASE_URL": f"http://127.0.0.1:{self.http.server_port}", "WANDB_API_KEY": KEY}

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        self.released.set()
        self.http.shutdown()
        self.http.server_close()

    def write(self, id, files):
        for name, chunk in files.items():
            lines = [json.loads(line) for line in chunk["content"]]
            if name == "wandb-history.jsonl":
                rows = self.runs[id]
                rows[chunk["offset"] : chunk["offset"] + len(lines)] = lines
            elif name == "wandb-summary.json":
                self.summary[id] = lines[-1]

    def bucket(self, id):
        rows = self.runs[id]
        counts = {"historyLineCount": len(rows), "logLineCount": 0, "eventsLineCount": 0}
        tails = {"historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]), "eventsTail": "[]"}
        names = {"id": id, "name": id, "displayName": id, "description": "", "sweepName": None, "notes": "", "tags": []}
        project = {"id": "p", "name": "normloss", "entity": {"id": "e", "name": "me"}}
        config = {"config": json.dumps(self.config.get(id, {})), "wandbConfig": '{"t": 1}'}
        summary = json.dumps(self.summary.get(id, {}))
        return {**names, **counts, **tails, **config, "summaryMetrics": summary, "project": project}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Server

    def log_message(self, *arguments):
        pass

    def do_POST(self):
        store, content = self.store, self.read()
        if self.path == "/graphql":
            query = json.loads(content)
            store.asked.append(query.get("operationName") or "?")
        else:
            store.asked.append(self.path)
        if store.mode == "slow":
            time.sleep(2)
        if store.mode == "hang":
            store.released.wait()
            return
        if store.mode == "error":
            self.answer({"error": "internal"}, 500)
        elif self.path == "/graphql":
            self.answer({"data": self.graphql(query)})
        else:
            if stream := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
                store.write(stream[1], json.loads(content).get("files") or {})
            self.answer({})

    def do_PUT(self):
        self.read()
        self.answer({})

    def do_GET(self):
        self.answer({})

    def graphql(self, query):
        store, values = self.store, query.get("variables") or {}
        name = query.get("operationName")
        if name == "UpsertBucket":
            id = values["name"]
            new = id not in store.runs
            store.runs.setdefault(id, [])
            if values.get("config"):
                store.config.setdefault(id, {}).update(json.loads(values["config"]))
            return {"upsertBucket": {"bucket": store.bucket(id), "inserted": new}}
        if name == "RunResumeStatus":
            known = values["name"] in store.runs
            bucket = store.bucket(values["name"]) if known else None
            return {"model": {"id": "p", "name": "normloss", "entity": {"id": "e", "name": "me"}, "bucket": bucket}}
        if name == "CreateRunFiles":
            base = store.environment["WANDB_BASE_URL"]
            files = [{"name": file, "uploadUrl": f"{base}/storage/{file}"} for file in values["files"]]
            return {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}
        if name == "RunStopStatus":
            return {"project": {"run": {"stopped": False}}}
        viewer = {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": viewer, "serverInfo": {"features": []}}

    def read(self):
        length = int(self.headers.get("Content-Length") or 0)
        content = self.rfile.read(length) if length else b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        return gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content

    def answer(self, value, status=200):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
