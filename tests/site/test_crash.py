"""Killed at random moments while it migrates, ingests or takes votes, a site loses nothing that was committed.

Digests are killed likewise in test_mail_deliver.py.
"""

import json
import multiprocessing
import random
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import func, select, text
from tests.site.site_cases import NOW, a_draft, unlike_models

from workingpapers.site.database import Database
from workingpapers.site.ingest.jsonl import ingest_lines
from workingpapers.site.models import Paper, Person, Vote
from workingpapers.site.store.papers import by_key, upsert
from workingpapers.site.store.votes import unvote, vote

KILLS = 17  # of each of three works
PAPERS, READERS = 4_000, 30
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["workingpapers.site.mail.deliver", "tests.site.test_crash"])


def migrates(url: str) -> None:
    Database(url).migrate()


def ingests(url: str, file: str) -> None:
    ingest_lines(Database(url), Path(file))


def votes(url: str, told: str, seed: int) -> None:
    """Vote and take votes back for ever; tell of each before it is asked for, and after it was committed."""
    database, draw = Database(url), random.Random(seed)
    with open(told, "a", buffering=1) as lines:
        while True:
            reader, wanted = draw.randrange(1, READERS + 1), draw.random() < 0.7
            lines.write(f"ask {reader} {wanted}\n")
            with database.write() as session:
                person, paper = session.get(Person, reader), by_key(session, "arxiv:2611.00001")
                (vote(session, person, paper, NOW) if wanted else unvote(session, person, paper))
            lines.write(f"done {reader} {wanted}\n")


def killed(work: Callable[..., None], *args: object, after: float) -> int | None:
    """Let a process do some work and kill it; return its exit code, 0 where it was done before."""
    process = PROCESSES.Process(target=work, args=args)
    process.start()
    process.join(after)
    process.kill()
    process.join(60)
    return process.exitcode


def whole(database: Database) -> None:
    """Assert that a database and its index of words are in order."""
    if database.dialect == "sqlite":
        with database.write() as session:
            assert session.scalar(text("PRAGMA integrity_check")) == "ok"
            session.execute(text("INSERT INTO papers_words(papers_words, rank) VALUES('integrity-check', 1)"))


def test_killed_while_it_migrates(database_url: str) -> None:
    chance = random.Random(1)
    other = Database(database_url)
    codes = [killed(migrates, database_url, after=chance.uniform(0, 0.15)) for _ in range(KILLS)]
    assert set(codes) <= {0, -9}
    other.migrate()
    assert unlike_models(other) == []
    whole(other)
    other.close()


def test_killed_while_it_ingests(database: Database, database_url: str, tmp_path: Path) -> None:
    file, chance = tmp_path / "papers.jsonl", random.Random(2)
    drafts = [a_draft(n) for n in range(PAPERS)]
    lines = [
        {"key": d.key, "title": d.title, "published": str(d.published), "abstract": d.abstract}
        for d in drafts
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    count, before = select(func.count()).select_from(Paper), 0
    for _ in range(KILLS):
        killed(ingests, database_url, str(file), after=chance.uniform(0.02, 0.4))
        with database.read() as session:
            now = session.scalar(count)
        assert now >= before
        before = now
    ingest_lines(database, file)
    with database.read() as session:
        assert session.scalar(count) == PAPERS
        assert session.scalar(select(func.count(Paper.title.distinct()))) == PAPERS
    whole(database)


def test_killed_while_votes_come_in(database: Database, database_url: str, tmp_path: Path) -> None:
    told, chance = tmp_path / "told", random.Random(3)
    with database.write() as session:
        upsert(session, [a_draft(1)], NOW)
        session.add_all(
            Person(email=f"{n}@example.org", name=f"reader{n}", created=NOW) for n in range(READERS)
        )
    told.touch()
    for kill in range(KILLS):
        size = told.stat().st_size
        process = PROCESSES.Process(target=votes, args=(database_url, str(told), kill))
        process.start()
        while told.stat().st_size == size and process.is_alive():  # a busy machine takes long to begin
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        process.join()
        assert process.exitcode == -9
    known: dict[int, bool] = {}
    doubtful: set[int] = set()  # asked for by a process that was killed before it could tell
    for line in told.read_text().splitlines():
        word, reader, wanted = line.split()
        if word == "done":
            known[int(reader)] = wanted == "True"
            doubtful.discard(int(reader))
        else:
            doubtful.add(int(reader))
    assert known
    with database.read() as session:
        voters = set(session.scalars(select(Vote.person_id)))
        assert by_key(session, "arxiv:2611.00001").votes == len(voters)
    for reader, wanted in known.items():
        assert reader in doubtful or (reader in voters) == wanted
    whole(database)
