"""Copies are recognized, near-copies are not; groups equal a comparison of all pairs."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_prep import dedup

FULL = 0x0F0F_F0F0_AAAA_5555  # a pHash as good as any


def keepers(*images: tuple[str, int, int, int], radius: int = 0, thumbnails: np.ndarray | None = None) -> list[int]:
    """Keepers of images, each (file, pHash, grey level, area); copies differ by at most 4 levels."""
    files, phash, level, area = zip(*images, strict=True)
    if thumbnails is None:
        thumbnails = np.stack([np.full((16, 16, 3), value, np.uint8) for value in level])
    hashes = np.array(phash, np.uint64)
    sha256 = np.stack([np.frombuffer(file.encode().ljust(32, b"\0"), np.uint8) for file in files])
    first, group = dedup.same_files(sha256), dedup.look_alikes(hashes, radius)
    rows = dedup.candidates(first, hashes, group)
    return dedup.keepers(first, hashes, group, np.array(area), thumbnails[rows], radius, 4).tolist()


def test_the_same_file_is_a_copy_whatever_its_hash():
    assert keepers(("a", 0, 9, 5), ("b", 0, 9, 5), ("a", 0, 9, 5)) == [0, 1, 0]


def test_an_image_with_equal_phash_and_similar_colours_is_a_copy():
    assert keepers(("a", FULL, 100, 5), ("b", FULL, 104, 4)) == [0, 0]
    assert keepers(("a", FULL, 100, 5), ("b", FULL, 105, 4)) == [0, 1]
    assert keepers(("a", FULL, 0, 5), ("b", FULL, 255, 4)) == [0, 1]
    assert keepers(("a", FULL, 100, 5), ("b", FULL ^ 1, 100, 4)) == [0, 1]


def test_within_the_radius_only_images_with_similar_colours_are_copies():
    near, far = FULL ^ 0b111, FULL ^ 0b1111
    assert keepers(("a", FULL, 9, 5), ("b", near, 9, 4), ("c", far, 9, 3), radius=3) == [0, 0, 2]
    assert keepers(("a", FULL, 9, 5), ("b", near, 99, 4), radius=3) == [0, 1]
    assert keepers(("a", FULL, 9, 5), ("b", near, 9, 4), radius=2) == [0, 1]


def test_flat_images_are_copies_only_as_the_same_file():
    for phash in (0, 1 << 63, 0x7F, 2**64 - 1):
        assert keepers(("a", phash, 9, 5), ("b", phash, 9, 5)) == [0, 1]


def test_the_largest_copy_is_kept_and_among_equals_the_first():
    assert keepers(("a", FULL, 9, 4), ("b", FULL, 9, 6), ("c", FULL, 9, 5)) == [1, 1, 1]
    assert keepers(("a", FULL, 9, 4), ("b", FULL, 9, 4)) == [0, 0]


def test_a_copy_of_a_copy_belongs_to_the_image_that_is_kept():
    assert keepers(("a", FULL, 9, 4), ("a", FULL, 9, 4), ("b", FULL, 9, 6)) == [2, 2, 2]


def test_images_that_differ_in_one_pixel_of_the_thumbnail_are_not_copies():
    thumbnails = np.full((2, 16, 16, 3), 200, np.uint8)
    thumbnails[1, 8, 8, 2] = 100
    assert keepers(("a", FULL, 0, 5), ("b", FULL, 0, 5), thumbnails=thumbnails) == [0, 1]


@given(st.data())
def test_copies_do_not_depend_on_the_order_of_images(data):
    files = data.draw(
        st.lists(st.tuples(st.sampled_from([0, FULL, FULL ^ 7]), st.sampled_from([0, 3, 6, 90])), min_size=1)
    )
    chosen = data.draw(st.lists(st.integers(0, len(files) - 1), min_size=1, max_size=20))

    def keeping_file(order: list[int]) -> dict[int, int]:
        kept = keepers(*((f"file {i}", *files[i], 100 + i) for i in order))
        for row, keeper in enumerate(kept):
            assert kept[keeper] == keeper
            assert order[keeper] >= order[row]
            same_look = files[order[row]][0] == files[order[keeper]][0] and files[order[row]][0] != 0
            assert order[row] == order[keeper] or same_look
        return {file: order[keeper] for file, keeper in zip(order, kept, strict=True)}

    assert keeping_file(chosen) == keeping_file(data.draw(st.permutations(chosen)))


def components(hashes: list[int], radius: int) -> set[frozenset[int]]:
    """Connected components by comparing all pairs."""
    groups: list[set[int]] = []
    for i, phash in enumerate(hashes):
        near = [group for group in groups if any((phash ^ hashes[j]).bit_count() <= radius for j in group)]
        groups = [group for group in groups if group not in near] + [{i}.union(*near)]
    return {frozenset(group) for group in groups}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2**64 - 1)), max_size=30), st.integers(0, 5), st.data())
def test_look_alikes_equal_a_comparison_of_all_pairs(drawn, radius, data):
    bases = [0, FULL, FULL ^ 0xFFFF, 2**63]
    bits = data.draw(st.lists(st.integers(0, 63), min_size=64, max_size=64))
    hashes = [
        bases[base] ^ (1 << bits[i % 64]) ^ (noise & 0x8001 if i % 2 else 0) for i, (base, noise) in enumerate(drawn)
    ]
    numbers = dedup.look_alikes(np.array(hashes, np.uint64), radius)
    groups = {frozenset(np.flatnonzero(numbers == number).tolist()) for number in set(numbers.tolist())}
    assert groups == components(hashes, radius)


def test_groups_are_numbered_by_their_least_hash():
    hashes = np.array([9 << 40, 0, 5 << 20, (5 << 20) + 1, 1], np.uint64)
    assert dedup.look_alikes(hashes, 1).tolist() == [2, 0, 1, 1, 0]
    assert dedup.look_alikes(hashes, 0).tolist() == [4, 0, 2, 3, 1]


def test_groups_do_not_depend_on_the_size_of_batches(monkeypatch):
    monkeypatch.setattr(dedup, "EDGES", 3)
    hashes = np.array([1 << i for i in range(64)] + [FULL, FULL ^ 1], np.uint64)
    assert len(set(dedup.look_alikes(hashes, 2).tolist())) == 2
