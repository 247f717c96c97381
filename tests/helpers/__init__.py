"""What tests share: networks, files, servers, and the naive reference."""
