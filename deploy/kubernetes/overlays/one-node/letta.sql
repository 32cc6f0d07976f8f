-- Run once, by the image of Postgres, when its volume is empty: Letta's role, its database, and pgvector.
\set password `cat /run/secrets/database-password`
CREATE ROLE letta LOGIN PASSWORD :'password';
CREATE DATABASE letta OWNER letta;
REVOKE ALL ON DATABASE letta FROM PUBLIC;
\connect letta
CREATE EXTENSION vector;
