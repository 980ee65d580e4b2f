"""The file that Google's flex template launcher runs."""

from retro_db_pipelines.flex import main

if __name__ == "__main__":
    main()
