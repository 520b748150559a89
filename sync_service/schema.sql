-- The Store. Times are UTC in ms since 1970; a Journal is named by its row, a Record by (journal, sequence).

create table if not exists kit (
    kit         text primary key,
    state       text not null,              -- 'active' or 'revoked': only an active Kit's Batches are stored (P8)
    created_ms  integer not null,
    status      text,                       -- the last retained status, JSON as the Kit sent it
    status_ms   integer,
    seen_ms     integer,                    -- receipt of the last good Batch
    life        text not null default 'provisioned',    -- where it is between bench and patient: life.py
    life_ms     integer,                    -- since when
    labelled_ms integer,                    -- its label was printed
    wiped_ms    integer                     -- what it has sent before belongs to a patient before
);

-- One Journal of one Kit: a Kit gets a new one at each wipe. It belongs to at most one Episode (P5).
create table if not exists journal (
    journal          integer primary key,
    kit              text not null references kit,
    journal_id       blob not null,
    through          integer not null default 0,    -- every sequence up to here is stored, or known to be lost
    derived_through  integer not null default 0,    -- every FRAME up to here has its Reading
    assignment       integer references assignment, -- the Episode it belongs to, set by its first placed Reading
    created_ms       integer not null,
    unique (kit, journal_id)
);

-- Every Record as it came (DESIGN 4: raw first). The key is the transport deduplication of DESIGN 9.
create table if not exists record (
    journal      integer not null,
    sequence     integer not null,
    type         integer not null,
    version      integer not null,
    boot         integer not null,
    uptime_ms    integer not null,
    body         blob not null,
    received_ms  integer not null,
    primary key (journal, sequence)
) without rowid;

-- Anchors, Sensor clocks, Sensors and events of a Journal are few: the timeline is rebuilt from them at a start.
create index if not exists record_context on record (journal, sequence) where type <> 1;

-- Peeks that hold all that their Frames need (gateway/message.py, WHOLE), until early derivation has looked at them.
create table if not exists peek (
    journal         integer not null,
    first           integer not null,       -- of the window in which nothing is missing
    last            integer not null,
    after_sequence  integer not null,       -- what the Kit took for stored
    primary key (journal, first, last)
) without rowid;

-- When each boot was heard of: the service's clock at the receipt of a Batch beside the Kit's uptime.
create table if not exists receipt (
    journal      integer not null,
    boot         integer not null,
    uptime_ms    integer not null,
    received_ms  integer not null,
    primary key (journal, boot)             -- the first Batch of a boot: the tightest bound for what came before it
) without rowid;

-- BOND_CHANGED Records that the operator has accepted: the Sensor is the one that it was.
create table if not exists accepted_bond (
    journal      integer not null,
    sequence     integer not null,
    accepted_ms  integer not null,
    primary key (journal, sequence)
) without rowid;

-- Same (Kit, Journal, sequence) with other bytes: both are kept, and it is an alarm.
create table if not exists conflict (
    journal      integer not null,
    sequence     integer not null,
    record       blob not null,             -- the whole Record that came second
    received_ms  integer not null,
    primary key (journal, sequence, record)
);

-- CRC-good bytes that this release can't decode: kept, acked where they have a sequence, and shown.
create table if not exists quarantine (
    id           integer primary key,
    kit          text not null,
    reason       text not null,
    content      blob not null,
    received_ms  integer not null,
    unique (kit, content)
);

-- What was refused or repeated, and why: shown on the console.
create table if not exists counter (
    kit   text not null,                    -- '' for the service itself
    name  text not null,
    n     integer not null,
    primary key (kit, name)
) without rowid;

-- A Kit belongs to an Episode during [start, end). `patient` is the Hub's reference; no patient detail is kept here.
create table if not exists assignment (
    assignment  integer primary key,
    kit         text not null references kit,
    episode     text not null,
    patient     text not null,              -- 'Patient/<id>' at the Hub
    start_ms    integer not null,
    end_ms      integer,                    -- null: still there
    check (end_ms is null or end_ms > start_ms)
);
create index if not exists assignment_kit on assignment (kit, start_ms);

-- One decoded measurement. `key` is fixed at the first derivation and is Observation.identifier at the Hub.
create table if not exists reading (
    reading          integer primary key,
    journal          integer not null,
    sequence         integer not null,
    key              blob not null,
    content          blob not null,         -- hash of Sensor identity, characteristic and raw value, without sequence
    repeat_of        integer references reading,
    possible_repeat  integer not null default 0,
    sensor           text not null,         -- Sensor identity: serial or System ID, else identity address
    trust            text not null,         -- good, questionable, never (P7)
    earliest_ms      integer,               -- the whole bound of when it was taken; null: not known (held)
    latest_ms        integer,
    quality          text,                  -- synced, extrapolated, sensor_corrected, bracketed
    state            text not null,         -- queued, held, repeat
    reason           text,                  -- why it is held
    barred           integer not null default 0,    -- held for its Sensor's sake: no Assignment can release it
    assignment       integer references assignment,
    derived_ms       integer not null,
    unique (journal, sequence)
);
create unique index if not exists reading_key on reading (key) where repeat_of is null;
-- By content: what has its content as its key is found by that. Most are: this index stays small.
create index if not exists reading_apart on reading (content) where key <> content or repeat_of is not null;
create index if not exists reading_held on reading (state) where state = 'held';

-- What still has to reach the Hub. Written in the transaction of its Reading; the row stays when it is done.
create table if not exists outbox (
    reading     integer primary key references reading,
    patient     text not null,              -- whose record it goes into; retract: out of
    kind        text not null default 'create',     -- create, amend, retract (redate.py)
    state       text not null,              -- queued, done, parked
    attempts    integer not null default 0,
    due_ms      integer not null,
    answer      text,                       -- the Hub's last word: status, and diagnostics where it refused
    done_ms     integer
);
-- By patient: deliveries for one patient are serialised, and one patient's backlog must not hide the others.
create index if not exists outbox_queued on outbox (patient, due_ms) where state = 'queued';
create index if not exists outbox_parked on outbox (reading) where state = 'parked';

-- Who changed what, and when.
create table if not exists audit (
    id      integer primary key,
    at_ms   integer not null,
    who     text not null,
    action  text not null,
    detail  text not null,
    kit     text                            -- whom it concerns, null: no Kit
);
create index if not exists audit_kit on audit (kit, id);

-- A technician of the bench. The token itself is shown once and kept nowhere.
create table if not exists technician (
    name        text primary key,
    token       blob not null unique,       -- SHA-256 of the token
    created_ms  integer not null,
    revoked_ms  integer
);

-- What the self-test of a Kit at the bench has found, check by check.
create table if not exists self_test (
    id       integer primary key,
    kit      text not null references kit,
    at_ms    integer not null,
    who      text not null,
    passed   integer not null,
    content  text not null                  -- JSON [{"name", "passed", "detail"}]
);
create index if not exists self_test_kit on self_test (kit, id);

-- A Sensor that travels with a Kit, and what the bench last did with it: bonded, emptied, cannot be emptied.
create table if not exists sensor_mark (
    kit      text not null references kit,
    sensor   text not null,                 -- address as on the air, C0:FF:EE:00:00:01
    mark     text not null,
    note     text not null,
    at_ms    integer not null,
    who      text not null,
    primary key (kit, sensor)
) without rowid;

-- A Sensor that nobody could empty: what it still holds is its last patient's (derive.py). Until it is emptied.
create table if not exists not_emptied (
    sensor    text primary key,             -- address as on the air
    kit       text not null references kit, -- that it came back with
    since_ms  integer not null
) without rowid;

-- The receipt of each wipe: the proof that nothing of the last patient is on the Kit.
create table if not exists wipe (
    id       integer primary key,
    kit      text not null references kit,
    at_ms    integer not null,
    who      text not null,
    receipt  text not null                  -- JSON, as printed
);
create index if not exists wipe_kit on wipe (kit, id);
