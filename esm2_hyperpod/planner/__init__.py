"""What a pretraining run takes, before a node is started: memory, time, money, disk, and the command."""
