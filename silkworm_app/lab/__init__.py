"The workshop: what measures and compares; it may use all rooms, and nothing uses it."
