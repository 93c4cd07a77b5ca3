"""What benchmarks/planted.py is made of: runs drawn at random, faults planted in them, answers judged."""
