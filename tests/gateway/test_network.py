"""Networks: told when they change, and never so often that the Journal fills."""

import unittest

from gateway.network import BURST, EVERY_MS, MAX_NETWORKS, STATES, Networks
from gateway.record import (
    NET_ABSENT,
    NET_AWAY,
    NET_CAPTIVE,
    NET_NO_INTERNET,
    NET_ONLINE,
    NET_UNTRIED,
    NET_WRONG_PASSWORD,
    NETWORK,
)

DAY_MS = 24 * EVERY_MS


class NetworksTest(unittest.TestCase):
    def setUp(self):
        self.said = []
        self.known = True
        self.networks = Networks(lambda *event: self.said.append(event), lambda now_ms: self.known)

    def test_a_change_is_told_once_and_a_repeat_is_not(self):
        for now_ms in range(0, 5_000, 1_000):
            self.networks.see(1, NET_WRONG_PASSWORD, now_ms)
        self.assertEqual(self.said, [(NETWORK, 0, bytes([1, NET_WRONG_PASSWORD]), 0)])

    def test_each_network_has_its_own_state_and_the_status_words_are_in_order(self):
        self.networks.see(0, NET_ABSENT, 0)
        self.networks.see(2, NET_ONLINE, 0)
        self.assertEqual(self.networks.words(), ["absent", "untried", "online"])
        self.assertEqual(len(self.said), 2)

    def test_nothing_tried_is_no_word(self):
        self.assertEqual(self.networks.words(), [])
        self.assertEqual(self.networks.state, NET_UNTRIED)

    def test_a_router_that_comes_and_goes_for_a_day_tells_at_most_one_an_hour(self):
        for now_ms in range(0, DAY_MS, 10_000):
            self.networks.see(0, NET_ONLINE if now_ms // 10_000 % 2 else NET_ABSENT, now_ms)
        self.assertTrue(BURST <= len(self.said) <= BURST + 24)

    def test_what_could_not_be_told_is_told_later_as_it_stands(self):
        for number in range(2 * BURST):
            self.networks.see(0, NET_ONLINE if number % 2 else NET_ABSENT, 0)
        self.networks.see(0, NET_CAPTIVE, 1)
        self.assertEqual(len(self.said), BURST)
        self.networks.settle(EVERY_MS)
        self.assertEqual(self.said[-1], (NETWORK, 0, bytes([0, NET_CAPTIVE]), 1))

    def test_a_boot_that_nobody_knows_of_waits_and_then_tells_its_last_trouble_and_how_it_is_now(self):
        self.known = False
        self.networks.see(0, NET_ABSENT, 10)
        self.networks.see(0, NET_NO_INTERNET, 20)
        self.networks.see(1, NET_ABSENT, 25)
        self.networks.settle(EVERY_MS)
        self.assertEqual(self.said, [])
        self.known = True
        self.networks.see(0, NET_ONLINE, 30)
        self.assertEqual(
            self.said,
            [
                (NETWORK, 0, bytes([0, NET_NO_INTERNET]), 20),
                (NETWORK, 0, bytes([0, NET_ONLINE]), 30),
                (NETWORK, 0, bytes([1, NET_ABSENT]), 25),
            ],
        )

    def test_a_quiet_month_saves_up_no_more_than_a_burst(self):
        self.networks.settle(30 * DAY_MS)
        for number in range(4 * BURST):
            self.networks.see(0, NET_ONLINE if number % 2 else NET_ABSENT, 30 * DAY_MS)
        self.assertEqual(len(self.said), BURST)

    def test_what_can_be_helped_comes_before_what_can_not_and_online_before_all(self):
        self.networks.see(0, NET_ABSENT, 0)
        self.networks.see(1, NET_NO_INTERNET, 0)
        self.networks.see(2, NET_AWAY, 0)
        self.assertEqual(self.networks.state, NET_AWAY)
        self.networks.see(1, NET_WRONG_PASSWORD, 0)
        self.assertEqual(self.networks.state, NET_WRONG_PASSWORD)
        self.networks.see(0, NET_ONLINE, 0)
        self.assertEqual(self.networks.state, NET_ONLINE)

    def test_a_place_that_does_not_exist_changes_nothing(self):
        for place in (-1, MAX_NETWORKS):
            self.networks.see(place, NET_ONLINE, 0)
        self.assertEqual((self.said, self.networks.words()), ([], []))

    def test_each_state_has_a_word(self):
        self.assertEqual(len(STATES), NET_AWAY + 1)


if __name__ == "__main__":
    unittest.main()
