"""As much of W&B's server as a run needs: it takes what wandb-core sends, and gives the history back."""

import json
import re
from collections.abc import Mapping
from typing import Any

from .servers import JsonServer

PROJECT = {"id": "7", "name": "tests", "entity": {"id": "8", "name": "me"}}


class WandbServer:
    """Listens at `url`; `history[run]` are the rows that it was sent, by their place."""

    def __init__(self) -> None:
        self.history: dict[str, dict[int, dict[str, Any]]] = {}

        self.server = JsonServer(self.answer)
        self.url = self.server.url

    def answer(self, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, dict[str, Any]]:
        return 200, self.take(path, body) if re.search("graphql|file_stream", path) else {}  # or an upload of a file

    def take(self, path: str, body: bytes) -> dict[str, Any]:
        """The answer to a request; those of W&B that change nothing here get an empty one."""
        content = json.loads(body)
        if "file_stream" in path:
            sent = content.get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
            rows = self.history.setdefault(path.split("/")[-2], {})
            rows |= {sent["offset"] + place: json.loads(line) for place, line in enumerate(sent["content"])}
            return {"limits": {}}
        found = re.search(r"(?:query|mutation)\s+(\w+)", content["query"])
        answer = getattr(self, f"answer_{found[1]}", None) if found else None
        variables = content.get("variables") or {}
        name = str(variables.get("name") or variables.get("runName") or variables.get("run"))
        return {"data": answer(name, variables) if answer else {}}

    def rows(self, name: str) -> list[dict[str, Any]]:
        """What was logged in a run, in its order."""
        return [row for _, row in sorted(self.history.get(name, {}).items())]

    def bucket(self, name: str) -> dict[str, Any]:
        rows = self.rows(name)
        lines = {"historyLineCount": len(rows), "logLineCount": 0, "eventsLineCount": 0, "eventsTail": "[]"}
        tail = {"historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]), "summaryMetrics": "{}"}
        names = {"id": f"id-{name}", "name": name, "displayName": name, "project": PROJECT}
        return names | lines | tail | {"config": "{}", "tags": [], "wandbConfig": '{"t": 1}', "writersCount": 0}

    def answer_Viewer(self, name: str, variables: dict) -> dict:
        return {"viewer": {"id": "8", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}

    answer_GetDefaultEntity = answer_Viewer

    def answer_RunResumeStatus(self, name: str, variables: dict) -> dict:
        return {"model": PROJECT | {"bucket": self.bucket(name) if name in self.history else None}}

    def answer_UpsertBucket(self, name: str, variables: dict) -> dict:
        is_new = name not in self.history
        self.history.setdefault(name, {})
        return {"upsertBucket": {"bucket": self.bucket(name), "inserted": is_new}}

    def answer_CreateRunFiles(self, name: str, variables: dict) -> dict:
        files = [{"name": file, "uploadUrl": f"{self.url}/{file}"} for file in variables["files"]]
        return {"createRunFiles": {"runID": f"id-{name}", "uploadHeaders": [], "files": files}}

    def answer_Run(self, name: str, variables: dict) -> dict:
        nothing = ("sweepName", "group", "jobType", "commit", "description", "notes")
        times = dict.fromkeys(("createdAt", "heartbeatAt"), "2026-01-01T00:00:00")
        run = dict.fromkeys(nothing) | times | self.bucket(name) | {"projectId": "7", "systemMetrics": "{}"}
        run |= {"state": "running", "readOnly": False, "user": {"name": "me", "username": "me"}}
        keys = {key: {"typeCounts": [{"type": "number", "count": 1}]} for row in self.rows(name) for key in row}
        last = max((row["_step"] for row in self.rows(name)), default=-1)
        return {"project": {"run": run | {"historyKeys": {"lastStep": last, "sets": [], "keys": keys}}}}

    answer_RunHistoryKeys = answer_Run

    def answer_RunParquetHistory(self, name: str, variables: dict) -> dict:
        live = [{key: row[key] for key in variables["liveKeys"]} for row in self.rows(name)]
        return {"project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": live}}}}

    def answer_HistoryPage(self, name: str, variables: dict) -> dict:
        asked = range(variables["minStep"], variables["maxStep"])
        rows = [json.dumps(row) for row in self.rows(name) if row["_step"] in asked]
        return {"project": {"run": {"history": rows}}}
