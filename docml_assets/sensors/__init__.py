"""What happens by itself.

experiments     new folders and changed RUN_NUMs start runs        stopped until switched on: it can cost money
new_data        changed labels or files start the next run         stopped until switched on: it can cost money
run_failures    a message for every failed run                     running
                jobs and runs that a killed process left behind    running
"""
