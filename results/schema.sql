-- Version 6. One row of `cells` is one measured setting; everything else hangs on its cell_id.

CREATE TABLE schema_version (version INTEGER NOT NULL);

CREATE TABLE runs (
  run_id VARCHAR PRIMARY KEY,
  started TIMESTAMP NOT NULL,
  finished TIMESTAMP,
  command VARCHAR NOT NULL,            -- the command line as typed
  code_version VARCHAR NOT NULL,       -- version of the distribution
  code_commit VARCHAR,                 -- git commit, when run from a checkout
  code_dirty BOOLEAN,                  -- uncommitted changes in that checkout
  packages JSON NOT NULL,              -- name -> version of the libraries that move numbers
  python VARCHAR NOT NULL,
  platform VARCHAR NOT NULL,
  device VARCHAR NOT NULL,             -- name of the accelerator or processor
  threads INTEGER NOT NULL
);

CREATE TABLE models (
  model VARCHAR PRIMARY KEY,
  family VARCHAR NOT NULL,
  title VARCHAR NOT NULL,
  resolution INTEGER NOT NULL,
  num_classes INTEGER NOT NULL,
  parameters BIGINT,
  guidance VARCHAR NOT NULL,           -- none, classifier-free, embedded, autoguidance
  natural_steps INTEGER NOT NULL,
  natural_cfg DOUBLE NOT NULL,
  paper VARCHAR NOT NULL,
  licence VARCHAR NOT NULL,
  card JSON NOT NULL
);

CREATE TABLE protocols (
  digest VARCHAR PRIMARY KEY,
  name VARCHAR NOT NULL,
  title VARCHAR NOT NULL,
  resolution INTEGER NOT NULL,
  definition JSON NOT NULL             -- the canonical form that the digest is taken of
);

CREATE TABLE cells (
  cell_id VARCHAR PRIMARY KEY,
  run_id VARCHAR NOT NULL,
  model VARCHAR NOT NULL,              -- the name asked for (may stand for a pair)
  checkpoint VARCHAR NOT NULL,         -- the card that was sampled
  family VARCHAR NOT NULL,
  protocol VARCHAR NOT NULL,           -- name
  protocol_digest VARCHAR NOT NULL,
  ranking VARCHAR NOT NULL,            -- digest of everything that makes rows comparable; rows rank only within it
  measurement VARCHAR,                 -- digest of what turns samples into numbers: equal for every N and seed
  status VARCHAR NOT NULL,             -- done, failed, unsupported
  reason VARCHAR,                      -- why it failed or is unsupported
  steps INTEGER,                       -- NULL for images scored from a folder
  cfg DOUBLE,
  sampler VARCHAR NOT NULL,            -- native, plain, or images
  settings JSON NOT NULL,              -- the complete sampler settings
  options JSON NOT NULL,               -- what --option changed
  dtype VARCHAR NOT NULL,
  seed BIGINT NOT NULL,
  num_samples INTEGER NOT NULL,
  batch_size INTEGER NOT NULL,
  off_regime BOOLEAN NOT NULL,         -- outside the step counts the checkpoint was trained for
  random_weights BOOLEAN NOT NULL,     -- measured for speed only, never ranked
  weights_sha256 VARCHAR,
  nfe DOUBLE,                          -- measured evaluations of the network per sample
  guide_nfe DOUBLE,                    -- of a second, weaker network
  substeps DOUBLE,                     -- updates between evaluations that ask no network, per sample; null: none
  failures INTEGER NOT NULL,           -- samples that were not finite
  parameters BIGINT,
  flops DOUBLE,                        -- per sample, by torch's counter
  network_seconds DOUBLE,
  decode_seconds DOUBLE,
  judge_seconds DOUBLE,
  images_per_second DOUBLE,            -- sampling and decoding in batches, median of repetitions
  latency_seconds DOUBLE,              -- one image, batch 1, likewise
  timing JSON,                         -- intervals, repetitions, threads, load, clock; NULL: timed while others worked
  peak_memory BIGINT,                  -- bytes of the model while sampling, weights included
  device VARCHAR NOT NULL,
  latent_shape VARCHAR NOT NULL,       -- rows of equal shape share their noise
  command VARCHAR NOT NULL,            -- repeats this row to the same digits
  started TIMESTAMP NOT NULL,
  finished TIMESTAMP NOT NULL,
  pixels JSON,                         -- what the images look like: counts, exact copies, remarks; NULL before version 2
  signed_by VARCHAR                    -- key that signed the bundle which the row came in; NULL: none (before version 6)
);

CREATE TABLE metrics (
  cell_id VARCHAR NOT NULL,
  metric VARCHAR NOT NULL,
  value DOUBLE,
  low DOUBLE,                          -- 95 % interval
  high DOUBLE,
  standard_error DOUBLE,
  corrected DOUBLE,                    -- bias-corrected value, where the method gives one
  n INTEGER NOT NULL,
  method VARCHAR NOT NULL,             -- how the interval was made
  judge VARCHAR NOT NULL,
  judge_digest VARCHAR NOT NULL,
  reference VARCHAR,
  reference_digest VARCHAR,
  jackknife DOUBLE[],                  -- value without block k, for paired differences and ranks
  jackknife_reference DOUBLE[],        -- value without block r of the reference; NULL where it has none (before version 4)
  PRIMARY KEY (cell_id, metric)
);

CREATE TABLE skipped_metrics (
  cell_id VARCHAR NOT NULL,
  metric VARCHAR NOT NULL,
  reason VARCHAR NOT NULL,
  PRIMARY KEY (cell_id, metric)
);

CREATE TABLE metric_facts (
  metric VARCHAR PRIMARY KEY,
  title VARCHAR NOT NULL,
  higher_is_better BOOLEAN NOT NULL,
  definition VARCHAR NOT NULL,
  kind VARCHAR,                        -- metric, composite or cost
  short VARCHAR,                       -- name for headings
  judge VARCHAR,                       -- the judge whose output is read
  "array" VARCHAR,                     -- that output, or a column of ranks or cells
  reference VARCHAR,                   -- what it needs of the reference: none, statistics or features
  unit VARCHAR,
  digits INTEGER,                      -- significant digits where no interval says how many are known
  lowest DOUBLE,                       -- possible values
  highest DOUBLE,
  place INTEGER,                       -- position in tables, smallest first
  summary BOOLEAN,                     -- a column of the terminal's leaderboard
  mmhm VARCHAR                         -- its column in the fair benchmark's tables, where MMHM reads it
);

CREATE TABLE per_class (
  cell_id VARCHAR NOT NULL,
  label INTEGER NOT NULL,
  class_name VARCHAR NOT NULL,
  metric VARCHAR NOT NULL,
  value DOUBLE,
  n INTEGER NOT NULL,                  -- generated images of the class
  n_reference INTEGER,                 -- real ones, where the metric reads them; NULL before version 4
  PRIMARY KEY (cell_id, label, metric)
);

CREATE TABLE thumbnails (
  cell_id VARCHAR NOT NULL,
  sample_index INTEGER NOT NULL,
  label INTEGER NOT NULL,
  class_name VARCHAR NOT NULL,
  width INTEGER NOT NULL,
  height INTEGER NOT NULL,
  png BLOB NOT NULL,
  PRIMARY KEY (cell_id, sample_index)
);

-- Ranks need all rows of a ranking, so they are written after the cells, and anew after every run.

-- MMHM, the composite over four metrics, of each row that has all four.
CREATE TABLE ranks (
  ranking VARCHAR NOT NULL,
  cell_id VARCHAR NOT NULL,
  mmhm DOUBLE NOT NULL,
  low DOUBLE,
  high DOUBLE,
  utilities JSON NOT NULL,             -- metric -> normalised value in [0, 1]
  outside JSON NOT NULL,               -- metrics that lie outside the bounds
  rank INTEGER,                        -- by the score as it is, 1 is best; equal scores share the better place
  rank_low INTEGER,                    -- 95 % rank set, true for all rows at once; NULL where `withheld` says why
  rank_high INTEGER,
  may_be_best BOOLEAN,                 -- one of the rows among which the best is with 95 %
  p_first DOUBLE,                      -- probability that the row is truly the best
  withheld VARCHAR,                    -- why nothing is said of the order
  geometric DOUBLE,                    -- geometric mean of the normalised values
  mean_rank DOUBLE,                    -- mean place over the four metrics, 1 is best
  jackknife DOUBLE[],                  -- MMHM without block k, for paired differences
  jackknife_reference DOUBLE[],        -- MMHM without block r of the reference
  PRIMARY KEY (ranking, cell_id)
);

-- The place of each row by each metric, and the places that paired differences leave to it.
CREATE TABLE metric_ranks (
  ranking VARCHAR NOT NULL,
  cell_id VARCHAR NOT NULL,
  metric VARCHAR NOT NULL,
  rank INTEGER NOT NULL,               -- by the value as it is, 1 is best; equal values share the better place
  rank_low INTEGER,                    -- 95 % rank set: 1 + rows surely better; NULL without enough blocks
  rank_high INTEGER,                   -- number of rows - rows surely worse
  may_be_best BOOLEAN,                 -- one of the rows among which the best is with 95 %
  PRIMARY KEY (ranking, cell_id, metric)
);

CREATE TABLE rankings (
  ranking VARCHAR PRIMARY KEY,
  protocol VARCHAR NOT NULL,
  reference VARCHAR,
  num_samples INTEGER NOT NULL,
  seed BIGINT NOT NULL,
  note VARCHAR,                        -- why there is no MMHM; what follows is then NULL
  eps DOUBLE,
  clip BOOLEAN,
  bounds JSON,                         -- metric -> [min, max]
  bounds_source VARCHAR,               -- "frozen (digits/1)" or "rows"
  correlation JSON,                    -- metric -> metric -> correlation over the rows
  sensitivity JSON                     -- dropped cell_id -> number of other rows whose rank changes
);

CREATE TABLE "references" (
  name VARCHAR NOT NULL,
  digest VARCHAR PRIMARY KEY,
  n INTEGER NOT NULL,
  resize VARCHAR NOT NULL,
  judge_digest VARCHAR NOT NULL,
  facts JSON NOT NULL
);

CREATE TABLE published (
  system VARCHAR NOT NULL,
  variant VARCHAR,
  dataset VARCHAR,
  resolution INTEGER,
  params_m DOUBLE,
  steps INTEGER,
  nfe DOUBLE,
  guidance VARCHAR,
  fid DOUBLE,
  "is" DOUBLE,
  "precision" DOUBLE,
  recall DOUBLE,
  clip DOUBLE,
  pick DOUBLE,
  mmhm DOUBLE,
  source VARCHAR,
  date VARCHAR,                        -- month of the paper, YYYY-MM; NULL where the source has none
  note VARCHAR
);
