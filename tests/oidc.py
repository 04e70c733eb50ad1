"""A service to sign in with, as small as OpenID Connect allows: it asks nothing and says that the browser's person is `Provider.person`."""

from __future__ import annotations

import json
import secrets
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

CLIENT = {"client_id": "lab", "client_secret": "only for this test"}


class Provider:
    """Started by `provider()`; its address is `url`."""

    def __init__(self, port: int):
        from joserfc.jwk import RSAKey

        self.url = f"http://localhost:{port}"
        self.person: dict[str, object] = {}  # claims of whoever signs in next
        self.key = RSAKey.generate_key(2048, parameters={"kid": "1", "use": "sig", "alg": "RS256"})
        self.nonces: dict[str, str] = {}

    def document(self) -> dict[str, object]:
        places = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "keys"}
        able = {"response_types_supported": ["code"], "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["RS256"]}
        return {"issuer": self.url} | {name: f"{self.url}/{place}" for name, place in places.items()} | able

    def authorized(self, asked: dict[str, str]) -> str:
        """Where the browser goes next, with a code that stands for the person."""
        code = secrets.token_hex(8)
        self.nonces[code] = asked.get("nonce", "")
        return f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}"

    def token(self, code: str) -> dict[str, object]:
        from joserfc import jwt

        now = int(time.time())
        claims = {"iss": self.url, "aud": CLIENT["client_id"], "iat": now, "exp": now + 600, "nonce": self.nonces.pop(code), **self.person}
        claims["sub"] = str(self.person.get("email", "nobody"))
        return {
            "access_token": "x",
            "token_type": "Bearer",
            "expires_in": 600,
            "id_token": jwt.encode({"alg": "RS256", "kid": "1"}, claims, self.key),
        }

    def secrets_file(self, app: str) -> str:
        """What `secrets.toml` of an app at this address says."""
        values = {"redirect_uri": f"{app}/oauth2callback", "cookie_secret": secrets.token_hex(16), **CLIENT}
        values["server_metadata_url"] = f"{self.url}/.well-known/openid-configuration"
        return "[auth]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        place, provider = urlsplit(self.path), self.server.provider
        asked = {name: values[0] for name, values in parse_qs(place.query).items()}
        if place.path == "/authorize":
            self.send_response(302)
            self.send_header("Location", provider.authorized(asked))
            self.end_headers()
            return
        self._say({"keys": [provider.key.as_dict(private=False)]} if place.path == "/keys" else provider.document())

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self._say(self.server.provider.token(form["code"][0]))

    def _say(self, answer: dict[str, object]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


@contextmanager
def provider():
    """A provider that answers on this machine until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.provider = Provider(server.server_address[1])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.provider
    finally:
        server.shutdown()
        server.server_close()
