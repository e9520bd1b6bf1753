"""The limit of connections against sequences of what connections do."""

from hypothesis import given
from hypothesis import strategies as st

from service.http.connection_limit import GIVES_WAY_AFTER_S, PROBE_RESERVE, ConnectionLimit

LIMIT = 3


class Connection:
    def __init__(self):
        self.is_open = True
        self.is_idle = False
        self.is_surplus = False
        self.idle_at = None

    def give_way(self):
        assert self.is_idle
        assert not self.is_surplus
        self.is_open = False

    def refuse_surplus(self):
        assert self.is_surplus
        assert not self.is_idle
        self.is_open = False


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["enter", "answer", "work", "close", "probe"]),
            st.integers(0, 30),
            st.floats(0, 4),
        ),
        max_size=80,
    )
)
def test_there_are_never_more_than_the_limit_and_the_reserve(steps):
    limit, now = ConnectionLimit(LIMIT), 0.0
    every: list[Connection] = []
    for step, which, seconds in steps:
        now += seconds
        is_open = [each for each in every if each.is_open]
        regular = [each for each in is_open if not each.is_surplus]
        chosen = is_open[which % len(is_open)] if is_open else None
        if step == "enter":
            new = Connection()
            waited_long = any(each.is_idle and now - each.idle_at >= GIVES_WAY_AFTER_S for each in regular)
            new.is_surplus = True  # until we know
            entered = limit.enter(new, now)
            new.is_surplus = not entered
            assert entered == (len(regular) < LIMIT or waited_long)
            every.append(new)
        elif chosen is None:
            continue
        elif step == "answer" and not chosen.is_surplus:
            chosen.is_idle, chosen.idle_at = True, now
            limit.rest(chosen, now)
        elif step == "work" and not chosen.is_surplus:
            chosen.is_idle = False
            limit.work(chosen)
        elif step == "probe" and chosen.is_surplus:
            if limit.promote(chosen, now):
                chosen.is_surplus = False
            else:
                limit.probe(chosen)
        elif step == "close":
            chosen.is_open = False
            limit.leave(chosen)
            limit.leave(chosen)
        is_open = [each for each in every if each.is_open]
        assert sum(not each.is_surplus for each in is_open) <= LIMIT
        assert sum(each.is_surplus for each in is_open) <= PROBE_RESERVE


def test_of_idle_connections_the_longest_idle_one_gives_way():
    limit = ConnectionLimit(2)
    first, second = Connection(), Connection()
    for connection in (first, second):
        assert limit.enter(connection, 0)
    for connection, now in ((first, 1), (second, 2), (first, 3)):
        connection.is_idle = True
        limit.rest(connection, now)
    assert limit.enter(Connection(), 3 + GIVES_WAY_AFTER_S)
    assert (first.is_open, second.is_open) == (True, False)
