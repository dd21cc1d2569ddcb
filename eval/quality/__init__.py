"""From features to numbers: metrics, floor, references, copies, the protocol."""
