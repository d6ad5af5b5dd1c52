-- # Train an autoencoder on pixels of a satellite image that are known to be normal:
CREATE MODEL sat OPTIONS (seed = 1)
  AS SELECT * EXCEPT (id, label, fit_0, fit_1, fit_2) FROM 'examples/demo/satimage-2.parquet' WHERE fit_0;
-- # The loss of some epochs:
SELECT stage, epoch, round(loss, 4) AS loss, round(held_out_loss, 4) AS held_out_loss, is_best
FROM ae_training('sat') WHERE epoch IN (1, 2, 5, 10, 20, 50) OR is_best ORDER BY epoch;
-- # The ten most anomalous of the other pixels, with the features responsible:
SELECT id, round(ae_error('sat'), 3) AS error, round(ae_pvalue('sat'), 4) AS p,
       c[1]['feature'] || ' ' || CAST(round(100 * c[1]['share']) AS INT) || ' %' AS first,
       c[2]['feature'] || ' ' || CAST(round(100 * c[2]['share']) AS INT) || ' %' AS second,
       c[3]['feature'] || ' ' || CAST(round(100 * c[3]['share']) AS INT) || ' %' AS third,
       CASE WHEN label = 1 THEN 'yes' ELSE '' END AS known_anomaly
FROM (SELECT *, ae_contributions('sat') AS c FROM 'examples/demo/satimage-2.parquet')
WHERE NOT fit_0
ORDER BY error DESC
LIMIT 10;
-- # Alerts, at a rate of one false alert in a hundred normal pixels:
SELECT CASE WHEN label = 1 THEN 'anomaly' ELSE 'normal' END AS known, count(*) AS pixels,
       sum(CASE WHEN ae_is_anomaly('sat') THEN 1 ELSE 0 END) AS alerts
FROM 'examples/demo/satimage-2.parquet' WHERE NOT fit_0 GROUP BY label ORDER BY label;
-- # A pixel as measured, and denoised (the first twelve features):
SELECT unnest(['f0', 'f1', 'f2', 'f3', 'f4', 'f5', 'f6', 'f7', 'f8', 'f9', 'f10', 'f11']) AS feature,
       unnest([f0, f1, f2, f3, f4, f5, f6, f7, f8, f9, f10, f11]) AS measured,
       round(unnest([d['f0'], d['f1'], d['f2'], d['f3'], d['f4'], d['f5'], d['f6'], d['f7'], d['f8'], d['f9'], d['f10'], d['f11']])::DOUBLE, 1) AS denoised
FROM (SELECT *, ae_denoise('sat') AS d FROM 'examples/demo/satimage-2.parquet' WHERE id = 100);
-- # How well the error ranks the 71 known anomalies among new pixels (AUROC: 1 is perfect, 0.5 is chance):
WITH scored AS (
  SELECT label, ae_error('sat') AS error FROM 'examples/demo/satimage-2.parquet' WHERE NOT fit_0
), ranked AS (
  SELECT label, rank() OVER (ORDER BY error) + (count(*) OVER (PARTITION BY error) - 1) / 2.0 AS rank FROM scored
)
SELECT count(*) AS rows, sum(label) AS anomalies,
       round((sum(rank) FILTER (WHERE label = 1) - sum(label) * (sum(label) + 1) / 2.0)
             / (sum(label) * (count(*) - sum(label))), 6) AS auroc
FROM ranked;
-- # Import a model that PyTorch trained on the same pixels, and compare the errors:
CREATE MODEL torch OPTIONS (model_type = 'onnx', model_path = 'examples/demo/satimage-2.onnx');
SELECT round(corr(ae_error('sat'), ae_error('torch')), 2) AS correlation_of_errors FROM 'examples/demo/satimage-2.parquet' WHERE NOT fit_0;
