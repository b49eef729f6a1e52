"""Find calls that exist only on POSIX systems, and text files without an encoding, in the syntax tree of a module.

Code that a condition on `sys.platform` keeps from running on Windows is left out. The condition is evaluated as mypy does it,
so that both agree: `sys.platform == "linux"`, `!=`, `not`, `and`, `or`, and everything after a `return` or `raise`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
NAMES = {
    "os": (
        "chown fchmod fchown fork forkpty getegid geteuid getgid getloadavg getpgid getpgrp getpriority getsid getuid "
        "kill killpg lchown mkfifo mknod nice openpty posix_fadvise posix_fallocate posix_spawn pread pwrite "
        "register_at_fork rename sched_getaffinity sched_setaffinity sendfile setgid setpgid setpriority setsid setuid "
        "statvfs sync sysconf tcsetpgrp ttyname uname wait wait3 wait4 waitid O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_CLOEXEC"
    ),
    "signal": (
        "SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGUSR1 SIGUSR2 SIGXFSZ alarm setitimer "
        "pause pthread_kill pthread_sigmask sigwait ITIMER_REAL"
    ),
    "time": "tzset clock_gettime",
    "socket": "AF_UNIX",
    "select": "poll epoll",
}
POSIX_NAMES = {f"{module}.{name}" for module, names in NAMES.items() for name in names.split()}
POSIX_KEYWORDS = {"preexec_fn", "start_new_session", "process_group", "pass_fds", "dir_fd"}
PATHS = re.compile(r"/(proc|dev|sys|etc|tmp|usr|var|bin)/\w")
SHELLS = {"sh", "bash", "ls", "cp", "mv", "rm", "cat", "kill"}


def posix_only(source: str) -> list[str]:
    """Return `line: reason` for each construct that Windows does not have."""
    return [f"{node.lineno}: {reason}" for node in _run_on_windows(ast.parse(source).body) for reason in _reasons(node)]


def without_encoding(source: str) -> list[str]:
    """Return `line: reason` for each text file or process that is read or written in the encoding of the system."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            given = {word.arg for word in node.keywords}
            if _opens_text(node) and "encoding" not in given:
                found.append(f"{node.lineno}: no encoding")
            if _writes_text(node) and "newline" not in given:
                found.append(f"{node.lineno}: no newline")
            is_text = any(word.arg == "text" and ast.unparse(word.value) == "True" for word in node.keywords)
            if is_text and "encoding" not in given:
                found.append(f"{node.lineno}: text= without encoding")
    return found


def _mode(node: ast.Call) -> str | None:
    """Return the mode of a call of `open`, or None if the call is another one or its mode is not a literal."""
    is_builtin = isinstance(node.func, ast.Name) and node.func.id == "open"
    is_method = isinstance(node.func, ast.Attribute) and node.func.attr == "open"
    if not (is_builtin or is_method):
        return None
    places = [word.value for word in node.keywords if word.arg == "mode"] + node.args[1 if is_builtin else 0 :][:1]
    if not places:
        return "r" if is_builtin else None  # `x.open()` may be anything
    value = places[0].value if isinstance(places[0], ast.Constant) else None
    return value if isinstance(value, str) and set(value) <= set("rwxabt+") else None


def _opens_text(node: ast.Call) -> bool:
    is_path_method = isinstance(node.func, ast.Attribute) and node.func.attr in ("read_text", "write_text")
    mode = _mode(node)
    return is_path_method or (mode is not None and "b" not in mode)


def _writes_text(node: ast.Call) -> bool:
    is_path_method = isinstance(node.func, ast.Attribute) and node.func.attr == "write_text"
    mode = _mode(node)
    if node.args and ast.unparse(node.args[0]) == "os.devnull":
        return False
    return is_path_method or (mode is not None and "b" not in mode and bool(set("wxa+") & set(mode)))


def _on_windows(test: ast.expr) -> bool | None:
    """Return the value of a condition on Windows, or None if it depends on something else than the system."""
    match test:
        case ast.Compare(left=left, ops=[ast.Eq() | ast.NotEq() as op], comparators=[ast.Constant(value=str(name))]):
            if ast.unparse(left) != "sys.platform":
                return None
            return (name == "win32") == isinstance(op, ast.Eq)
        case ast.Call(func=func, args=[ast.Constant(value=str(name))]) if (
            ast.unparse(func) == "sys.platform.startswith"
        ):
            return "win32".startswith(name)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            value = _on_windows(operand)
            return None if value is None else not value
        case ast.BoolOp(op=ast.And(), values=values):
            return False if False in map(_on_windows, values) else None
        case ast.BoolOp(op=ast.Or(), values=values):
            return True if True in map(_on_windows, values) else None
    return None


def _run_on_windows(body: list[ast.stmt]) -> Iterator[ast.expr | ast.stmt]:
    """Yield the statements and expressions of a block that Windows can reach."""
    for statement in body:
        if isinstance(statement, ast.If):
            value = _on_windows(statement.test)
            yield from _expressions(statement.test)
            if value is not False:
                yield from _run_on_windows(statement.body)
            if value is not True:
                yield from _run_on_windows(statement.orelse)
            if value is True and isinstance(statement.body[-1], ast.Return | ast.Raise):
                return
            continue
        yield statement
        for _, child in ast.iter_fields(statement):
            children = child if isinstance(child, list) else [child]
            statements = [part for part in children if isinstance(part, ast.stmt)]
            yield from _run_on_windows(statements)
            for part in children:
                if isinstance(part, ast.excepthandler | ast.match_case):
                    yield from _run_on_windows(part.body)
                elif isinstance(part, ast.AST) and not isinstance(part, ast.stmt):
                    yield from _expressions(part)


def _expressions(node: ast.AST) -> Iterator[ast.expr]:
    """Yield the expressions in `node` that Windows evaluates."""
    match node:
        case ast.IfExp(test=test, body=body, orelse=orelse):
            value = _on_windows(test)
            parts = [test, *([body] if value is not False else []), *([orelse] if value is not True else [])]
            for part in parts:
                yield from _expressions(part)
        case ast.BoolOp(op=ast.And(), values=values):
            for part in values:
                yield from _expressions(part)
                if _on_windows(part) is False:
                    return
        case _:
            if isinstance(node, ast.expr):
                yield node
            for child in ast.iter_child_nodes(node):
                yield from _expressions(child)


def _reasons(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (f"import {name.name}" for name in names if name.name in MODULES)
        case ast.ImportFrom(module=module, names=names):
            yield from (f"from {module} import" for _ in range(module in MODULES))
            yield from (f"{module}.{name.name}" for name in names if f"{module}.{name.name}" in POSIX_NAMES)
        case ast.Attribute() if ast.unparse(node) in POSIX_NAMES:
            yield ast.unparse(node)
        case ast.Constant(value=str(text)) if PATHS.match(text):
            yield f"the path {text!r}"
        case ast.Call(func=func, args=args, keywords=words):
            yield from (f"{word.arg}=" for word in words if word.arg in POSIX_KEYWORDS)
            shell = [word for word in words if word.arg == "shell" and ast.unparse(word.value) == "True"]
            yield from ("shell=True" for _ in shell)
            called = ast.unparse(func).rsplit(".", 1)[-1]
            match called, args:
                case "get_context", [ast.Constant(value=("fork" | "forkserver") as method)]:
                    yield f"get_context({method!r})"
                case "getattr" | "hasattr", [ast.Name(id=module), ast.Constant(value=str(name)), *_]:
                    if f"{module}.{name}" in POSIX_NAMES:
                        yield f"{called} of {module}.{name}, which mypy cannot check: compare sys.platform"
                case "run" | "Popen" | "check_output" | "check_call", [
                    ast.List(elts=[ast.Constant(value=program), *_]),
                    *_,
                ]:
                    if program in SHELLS:
                        yield f"the program {program}"
