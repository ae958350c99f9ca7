"""What an agent pool is made of: a protocol, Node objects with nothing behind them, and real nodes of this machine."""
