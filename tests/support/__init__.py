"""What tests share that is no fixture: projects and their texts, processes, disks, and slow plain truths."""
