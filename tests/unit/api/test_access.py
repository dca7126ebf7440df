import os
import tempfile
import threading
import time
from pathlib import Path
from unittest import TestCase

from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from novasvc import Manager
from novasvc.api.login_links import LIFETIME, LoginLinks
from novasvc.api.sessions import COOKIE, Sessions, session_key
from novasvc.api.tokens import Token, add_token, digest, find_token, read_tokens
from novasvc.errors import DirectoryError, SettingError
from novasvc.service import Service
from tests.support.api_rig import ADMINS, READERS, TOKENS, APIRig

SECRET = "not-to-be-seen-anywhere"


class FolderCase(TestCase):
    """A test with a directory of its own."""

    def setUp(self) -> None:
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.folder = Path(holder.name)


class TokenFileTests(FolderCase):
    """Tests for novasvc.api.tokens."""

    def write(self, text: str, mode: int = 0o600) -> Path:
        path = self.folder / "tokens"
        path.write_text(text)
        path.chmod(mode)
        return path

    def refused(self, path: Path) -> str:
        with self.assertRaises(SettingError) as caught:
            read_tokens(path)
        text = str(caught.exception)
        self.assertNotIn(SECRET, text)
        return text

    def test_read(self) -> None:
        """Each line is a token, except for empty lines and comments. The token itself is not stored."""
        tokens = read_tokens(self.write(f"# ours\n\nada admin {SECRET}\n  ron  read  {SECRET}2\n"))
        self.assertEqual([(token.name, token.scope) for token in tokens], [("ada", "admin"), ("ron", "read")])
        self.assertNotIn(SECRET, repr(tokens))
        self.assertEqual(find_token(tokens, SECRET), tokens[0])
        self.assertIsNone(find_token(tokens, SECRET[:-1]))
        self.assertIsNone(find_token(tokens, "\udcff"))

    def test_refused(self) -> None:
        """A file that other users can read, or with an invalid line, is rejected; the error has the line number."""
        self.assertIn("0640", self.refused(self.write(f"ada admin {SECRET}\n", 0o640)))
        self.assertIn("line 2", self.refused(self.write(f"ada admin {SECRET}\nron all {SECRET}\n")))
        self.assertIn("line 1", self.refused(self.write(f"{SECRET}\n")))
        self.assertIn("line 1 is too short", self.refused(self.write("ada admin short\n")))
        self.assertIn("line 2 repeats a name", self.refused(self.write(f"ada admin {SECRET}\nada read {SECRET}\n")))
        self.assertIn("no token", self.refused(self.write("# nobody\n")))
        self.assertIn("cannot be read", self.refused(self.folder / "nowhere"))
        path = self.write("")
        path.write_bytes(b"\xff\xfe")
        self.assertIn("UTF-8", self.refused(path))

    def test_add(self) -> None:
        """add_token creates the file with mode 0600, and rejects a name that exists."""
        path = self.folder / "new"
        add_token(path, "ada", "admin", SECRET)
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        path.write_text(path.read_text().rstrip())  # an editor left out the last end of a line
        add_token(path, "ron", "read", f"{SECRET}2")
        self.assertEqual([token.digest for token in read_tokens(path)], [digest(SECRET), digest(f"{SECRET}2")])
        for name, place in (("ada", path), ("two words", path), ("eve", self.folder / "no" / "where")):
            with self.assertRaises(SettingError) as caught:
                add_token(place, name, "admin", SECRET)
            self.assertNotIn(SECRET, str(caught.exception))


class LoginsTests(FolderCase):
    """Tests for novasvc.api.login_links."""

    def test_once(self) -> None:
        """An issued code is valid once; its file does not contain it."""
        logins = LoginLinks(self.folder / "logins")
        code = logins.issue()
        (file,) = (self.folder / "logins").iterdir()
        self.assertEqual((file.stat().st_mode & 0o777, file.stat().st_size), (0o600, 0))
        self.assertNotIn(code, file.name)
        self.assertFalse(logins.use("../logins"))
        self.assertTrue(LoginLinks(self.folder / "logins").use(code))
        self.assertFalse(logins.use(code))

    def test_at_once(self) -> None:
        """Of concurrent uses of a code one succeeds."""
        logins = LoginLinks(self.folder)
        for _ in range(20):
            code, let_in = logins.issue(), []
            together = threading.Barrier(4)

            def use(code: str = code, let_in: list[bool] = let_in, together: threading.Barrier = together) -> None:
                together.wait()
                let_in.append(logins.use(code))

            threads = [threading.Thread(target=use) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(sorted(let_in), [False, False, False, True])

    def test_late(self) -> None:
        """A code expires after an hour, and the next one removes it. There are at most a hundred."""
        logins = LoginLinks(self.folder)
        code = logins.issue()
        (file,) = self.folder.iterdir()
        old = time.time() - LIFETIME - 1
        os.utime(file, (old, old))
        self.assertFalse(logins.use(code))
        for _ in range(103):
            logins.issue()
        self.assertEqual(len(list(self.folder.iterdir())), 100)

    def test_no_directory(self) -> None:
        """If a code cannot be stored, the error names the directory."""
        (self.folder / "file").write_text("")
        with self.assertRaises(DirectoryError):
            LoginLinks(self.folder / "file").issue()


class SessionsTests(FolderCase):
    """Tests for novasvc.api.sessions."""

    def test_cookie(self) -> None:
        """A cookie is valid until it expires; one that was not signed is not."""
        now = [0.0]
        sessions = Sessions(b"k" * 32, lambda: now[0])
        cookie = sessions.begin("ada", "admin")
        session = sessions.read(cookie)
        assert session is not None
        self.assertEqual((session.name, session.scope), ("ada", "admin"))
        payload, _, signature = cookie.partition(".")
        forged = ("", ".", payload, f"{payload}.", f"{payload}x.{signature}", f"{cookie}x", "x" * 9999, "\udcff.\xe9")
        for other in forged:
            self.assertIsNone(sessions.read(other), other)
        self.assertIsNone(Sessions(b"o" * 32, lambda: now[0]).read(cookie))
        now[0] = 1e6
        self.assertIsNone(sessions.read(cookie))

    def test_form(self) -> None:
        """A CSRF token is valid for one session only, and a cookie's signature is none."""
        sessions = Sessions(b"k" * 32, lambda: 0.0)
        mark = sessions.csrf_token("a")
        self.assertTrue(sessions.verify_csrf_token("a", mark))
        for session, other in (("b", mark), ("a", ""), ("a", "\udcff"), ("a", sessions.begin("a", "admin"))):
            self.assertFalse(sessions.verify_csrf_token(session, other))

    def test_key(self) -> None:
        """All processes of a host share one key, created once with mode 0600."""
        key = session_key(self.folder)
        self.assertEqual(session_key(self.folder), key)
        file = self.folder / "api.key"
        self.assertEqual(([*self.folder.iterdir()], file.stat().st_mode & 0o777), ([file], 0o600))
        file.write_bytes(b"half")
        with self.assertRaises(DirectoryError):
            session_key(self.folder)


class AccessTests(TestCase):
    """Tests for novasvc.api.access, through the site."""

    CALL = "/v1/rpc/agent/ping"

    def test_nobody(self) -> None:
        """Without a valid token every read and change gets 401."""
        rig = APIRig(self, TOKENS)
        for path in ("/metrics", self.CALL):
            method = "POST" if path == self.CALL else "GET"
            for headers in ({}, {"X_Auth_Token": "wrong"}, {"Authorization": "Basic abc"}, {"Cookie": f"{COOKIE}=x.y"}):
                answer = rig.ask(method, path, {} if method == "POST" else None, **headers)
                self.assertEqual(answer.status, 401, (path, headers))
                self.assertIn("Keystone uri=", answer.headers["WWW-Authenticate"])
                self.assertNotIn("wrong", str(answer.document))

    def test_scopes(self) -> None:
        """The scope read allows reads only; a token may be in either of two headers."""
        rig = APIRig(self, TOKENS)
        self.assertEqual(rig.get("/metrics", X_Auth_Token=READERS).status, 200)
        self.assertEqual(rig.get("/metrics", Authorization=f"Bearer {READERS}").status, 200)
        answer = rig.ask("POST", self.CALL, {}, X_Auth_Token=READERS)
        self.assertEqual(answer.status, 403)
        self.assertIn("ron", answer.document["error"]["message"])
        self.assertEqual(rig.ask("POST", self.CALL, {}, X_Auth_Token=ADMINS).status, 404)  # nobody serves it

    def test_other_sites(self) -> None:
        """A cross-site request with a session's cookie changes nothing; our own pages and programs may."""
        rig = APIRig(self, TOKENS)
        cookie = rig.access.log_in(token=ADMINS)
        assert cookie is not None
        self.assertIn("HttpOnly; SameSite=Strict", cookie)
        bring = {"Cookie": cookie.partition(";")[0]}
        for origin in ({"Origin": "http://evil.example"}, {"Sec_Fetch_Site": "cross-site"}, {"Origin": "null"}):
            self.assertEqual(rig.ask("POST", self.CALL, {}, **bring, **origin).status, 403, origin)
        for origin in ({"Origin": "http://127.0.0.1:8774"}, {"Sec_Fetch_Site": "same-origin"}, {}):
            self.assertEqual(rig.ask("POST", self.CALL, {}, **bring, **origin).status, 404, origin)
        self.assertIsNone(rig.access.log_in(token="wrong"))
        self.assertIsNone(rig.access.log_in(code="wrong"))

    def test_refusals_are_logged(self) -> None:
        """Rejected changes are audited with caller, action and address, unauthenticated ones too."""
        told: list[LogEvent] = []
        globalLogPublisher.addObserver(told.append)
        self.addCleanup(globalLogPublisher.removeObserver, told.append)
        rig = APIRig(self, TOKENS)
        old = {"host": "h1", "binary": "novasvc-agent"}
        rig.ask("POST", "/v1/rpc/agent/work", {}, X_Auth_Token=READERS)
        rig.ask("PUT", "/v2.1/os-services/disable", old, X_Auth_Token=READERS)
        rig.ask("PUT", "/v2.1/os-services/disable", [], X_Auth_Token=READERS)
        rig.ask("DELETE", "/v2.1/os-services/1", X_Auth_Token="none-of-all-of-them")
        rig.get("/v2.1/os-services")
        lines = [str(formatEvent(event)) for event in told if event.get("audit")]
        who = [line.partition(": ")[2].partition(" from ")[0] for line in lines]
        self.assertEqual(who, ["ron (token)", "ron (token)", "ron (token)", "unauthenticated"])
        self.assertEqual(
            [line.split(": ", 2)[2] for line in lines],
            [
                "call agent.work: this requires the scope admin; ron has read",
                "update novasvc-agent@h1: the scope admin is required",
                "update disable: the scope admin is required",
                "DELETE /v2.1/os-services/1: no valid token or session",
            ],
        )

    def test_other_names(self) -> None:
        """Without tokens, a Host that merely resolves to loopback is rejected (DNS rebinding)."""
        rig = APIRig(self)
        for host in ("evil.example", "evil.example:8774", "127.0.0.1.evil.example", "[::2]"):
            self.assertEqual(rig.get("/metrics", Host=host).status, 403, host)
        for host in ("localhost:8774", "127.0.0.1", "[::1]:8774", "LOCALHOST"):
            self.assertEqual(rig.get("/metrics", Host=host).status, 200, host)

    def test_headers(self) -> None:
        """Every response has the security headers."""
        rig = APIRig(self, TOKENS)
        for path in ("/healthz", "/metrics", "/nowhere", "/", "/login"):
            headers = rig.get(path).headers
            self.assertIn("default-src 'none'", headers["Content-Security-Policy"], path)
            self.assertEqual(headers["X-Content-Type-Options"], "nosniff", path)
            self.assertIsNone(headers["Server"], path)

    def test_odd_names(self) -> None:
        """A malformed Host or Origin is rejected, and is not a 500."""
        for host in ("[", "[::1", "]", "a:b:c", "[zz]:1"):
            self.assertIn(APIRig(self).get("/metrics", Host=host).status, {400, 403}, host)
        rig = APIRig(self, TOKENS)
        cookie = rig.access.log_in(token=ADMINS) or ""
        for origin in ("http://[", "[", "http://", "//", "http://127.0.0.1:8774.evil.example"):
            answer = rig.ask("POST", self.CALL, {}, Cookie=cookie.partition(";")[0], Origin=origin)
            self.assertEqual(answer.status, 403, origin)

    def test_other_names_are_told_nothing(self) -> None:
        """A Host that merely resolves to loopback gets no details of the health."""
        rig = APIRig(self)
        node = Service("h1", "agent", "agent", Manager, runtime=rig.runtime)
        rig.backend.local_services = lambda: [node]
        self.assertIn(b"detail", rig.get("/readyz").body)
        self.assertNotIn(b"detail", rig.get("/readyz", Host="evil.example").body)

    def test_token_taken_away(self) -> None:
        """A session has its token's current scope, and ends with the token; one by a login link goes on."""
        rig = APIRig(self, TOKENS)
        begun = rig.access.log_in(token=ADMINS), rig.access.log_in(code=rig.access.login_links.issue())
        by_token, by_link = ((cookie or "").partition(";")[0] for cookie in begun)
        self.assertEqual(rig.get("/metrics", Cookie=by_token).status, 200)
        rig.access._tokens = (Token("ada", "read", digest(ADMINS)),)
        self.assertEqual(rig.ask("POST", self.CALL, {}, Cookie=by_token).status, 403)
        rig.access._tokens = (Token("ada", "admin", digest("another-token-of-ada")),)
        self.assertEqual(rig.get("/metrics", Cookie=by_token).status, 401)
        self.assertEqual(rig.get("/metrics", Cookie=by_link).status, 200)

    def test_proxy(self) -> None:
        """Behind a proxy that terminates TLS, links have the scheme that the client used."""
        rig = APIRig(self)
        for proto, scheme in (("https", "https"), ("HTTPS, http", "https"), ("http", "http"), ("", "http")):
            answer = rig.get("/v2.1/", X_Forwarded_Proto=proto, Host="localhost:8774")
            self.assertEqual(answer.document["version"]["links"][0]["href"], f"{scheme}://localhost:8774/v2.1/")

    def test_slashes(self) -> None:
        """A path with a doubled slash is 404, not a redirect."""
        rig = APIRig(self)
        for path in ("/node//x", "/action//x/y", "/v1/rpc//x"):
            self.assertIn(rig.get(path).status, {404, 405}, path)

    def test_path_that_is_no_text(self) -> None:
        """A path that is not valid UTF-8, or that a database cannot store, gets a JSON error."""
        rig = APIRig(self)
        for path in ("/v1/rpc/%ff/x", "/%ff", "/v2.1/os-services/%ff", "/node/%c3%28", "/node/%00", "/action/ping/%00"):
            answer = rig.ask("POST", path, {})
            self.assertEqual((answer.status, answer.document["error"]["code"]), (400, 400), path)

    def test_host_that_is_no_name(self) -> None:
        """A Host header that is valid HTTP, but not a host name, gets a JSON error."""
        rig = APIRig(self)
        for host in ("a..b", "x" * 64, "."):
            for path in ("/healthz", "/leases", "/v1/leases"):
                answer = rig.get(path, Host=host)
                self.assertEqual((answer.status, answer.document["error"]["code"]), (400, 400), path)
