"""Does it fit, how fast can it be, what does it cost: answered by the compiler."""
