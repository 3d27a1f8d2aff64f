"""What stands between the protocol core and the machine: hosts, journal, workers, supervisor."""
