"""Seed blocks of noise: how many there are, how large they are, and which ones no result uses. No torch."""

BLOCKS, BLOCK_IMAGES = 2**12, 2**20
"""Number of seed blocks, and images of each: the CPU generator keeps 32 bits of its seed, so larger keys collide."""
SEARCH = BLOCKS - 1
CALIBRATION = BLOCKS - 2
RESERVED = {
    SEARCH: "choices: the noise levels of a student, and the best of several averages",
    CALIBRATION: "calibration of an int8 export",
}
"""What each reserved seed block is for. A result on the same noise would look better than it is."""
RESULT_BLOCKS = min(RESERVED)
"""Results use the seed blocks 0 up to RESULT_BLOCKS - 1."""
