"""Learned words on the Hub, against a small server that answers as the Hub's API does."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image

from limelight import FileError, LearnedWord, SettingsError
from limelight.textual_inversion import hub
from tests.textual_inversion.words import learned_word

COMMIT = "0" * 40


class _Hub(BaseHTTPRequestHandler):
    """Repositories in memory: name -> file -> content."""

    def log_message(self, *_):
        pass

    def answer(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        repos = self.server.repos
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else f"me/{asked['name']}"
            repos.setdefault(name, {})
            self.server.private[name] = asked.get("private") or asked.get("visibility") == "private"
            self.answer({"url": f"{self.server.address}/{name}"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif match := re.fullmatch(r"/api/models/(.+)/commit/main(\?.*)?", self.path):
            for line in body.splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    repos[match[1]][row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            url = f"{self.server.address}/{match[1]}/commit/{COMMIT}"
            self.answer({"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})
        else:
            self.answer({"error": self.path}, 404)

    def do_GET(self):
        path, repos = self.path.partition("?")[0], self.server.repos
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+)?", path):
            if match[1] not in repos:
                return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            files = [{"rfilename": name} for name in repos[match[1]]]
            return self.answer({"id": match[1], "sha": COMMIT, "siblings": files, "private": False})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/.+", path):
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in repos[match[1]].items()
            ]
            return self.answer(tree)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            content = repos[match[1]][match[2]]
            tag = f'"{hashlib.sha1(content).hexdigest()}"'
            return self.answer(content, ETag=tag, X_Repo_Commit=COMMIT)
        return self.answer({"error": path}, 404)

    do_HEAD = do_GET  # noqa: N815 - so http.server calls it


@pytest.fixture
def server(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.repos, server.private = {}, {}
    server.address = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(hub, "_api", lambda: _Api(server.address, tmp_path / "cache"))
    yield server
    server.shutdown()
    server.server_close()


class _Api(HfApi):
    """The Hub's own client, at another address and with a cache of its own."""

    def __init__(self, address, cache):
        super().__init__(endpoint=address, token="hf_test")
        self.cache = cache

    def snapshot_download(self, *args, **options):
        return super().snapshot_download(*args, **options, cache_dir=self.cache)


def test_there_and_back(server, tmp_path):
    word = learned_word(2)
    address = word.push_to_hub("me/my-cat", images=[Image.new("RGB", (8, 8), "red")], kind="style", private=True)
    assert address == f"{server.address}/me/my-cat"
    assert server.private == {"me/my-cat": True}
    files = server.repos["me/my-cat"]
    assert set(files) == {
        "learned_embeds.safetensors",
        "token_identifier.txt",
        "type_of_concept.txt",
        "README.md",
        "concept_images/0.jpeg",
    }
    assert files["token_identifier.txt"] == b"<my-cat>"
    assert files["type_of_concept.txt"] == b"style"
    card = files["README.md"].decode()
    assert 'from_hub("me/my-cat")' in card
    assert "![<my-cat> 0](concept_images/0.jpeg)" in card

    found = LearnedWord.from_hub("me/my-cat")
    assert found.token == "<my-cat>"
    assert torch.equal(found.vectors[0], word.vectors[0])
    fetched = [path.name for path in (tmp_path / "cache").rglob("snapshots/*/*")]
    assert sorted(fetched) == ["learned_embeds.safetensors", "token_identifier.txt"], "no images, no card"
    assert LearnedWord.from_hub("me/my-cat", "tom").token == "<tom>"


def test_the_library_of_concepts(server, tmp_path):
    """Its words are pickles of diffusers' trainer, with their name in a file beside them."""
    path = tmp_path / "learned_embeds.bin"
    torch.save({"<cat-toy>": torch.ones(768)}, path)
    server.repos["sd-concepts-library/cat-toy"] = {
        "learned_embeds.bin": path.read_bytes(),
        "token_identifier.txt": b"<cat-toy>",
        "type_of_concept.txt": b"object",
        "README.md": b"",
    }
    found = LearnedWord.from_hub("sd-concepts-library/cat-toy")
    assert (found.token, found.vectors[0].tolist()) == ("<cat-toy>", [[1.0] * 768])


def test_what_cannot_be_read_or_written(server, monkeypatch):
    with pytest.raises(FileError, match="'me/none' cannot be read on the Hub"):
        LearnedWord.from_hub("me/none")
    with pytest.raises(FileError, match="'a b' cannot be written on the Hub"):
        learned_word().push_to_hub("a b")
    with pytest.raises(SettingsError, match="kind='thing' must be 'object' or 'style'"):
        learned_word().push_to_hub("me/cat", kind="thing")
    server.repos["me/empty"] = {"README.md": b""}
    with pytest.raises(FileError, match="'me/empty' holds no learned word"):
        LearnedWord.from_hub("me/empty")
    monkeypatch.setattr(hub, "_api", lambda: HfApi(endpoint="http://127.0.0.1:9"))
    with pytest.raises(FileError, match="'me/cat' cannot be written on the Hub"):
        learned_word().push_to_hub("me/cat")
    assert not server.repos["me/empty"].keys() - {"README.md"}
