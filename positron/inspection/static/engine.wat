;; Kernels of engine.js: products of stored rows with a vector, 4 float32 numbers an instruction, 16 columns a turn.
;;
;; All pointers are bytes in the imported memory. `stride` is the number of columns of a stored row: a multiple of 16,
;; the last ones zero. Sums are kept in four accumulators of four numbers each, which also keeps the rounding small.
;; engine.wasm holds the bytes of this file (wat2wasm engine.wat); a test compares them.
(module
  (import "env" "memory" (memory 1))

  ;; out[r] = sum over c of w[r, c] x[c]; w float32
  (func (export "rows_f32") (param $out i32) (param $w i32) (param $x i32) (param $rows i32) (param $stride i32)
    (local $end i32) (local $last i32) (local $p i32)
    (local $a v128) (local $b v128) (local $c v128) (local $d v128)
    (local.set $last (i32.add (local.get $out) (i32.shl (local.get $rows) (i32.const 2))))
    (local.set $end (i32.add (local.get $x) (i32.shl (local.get $stride) (i32.const 2))))
    (block $done
      (loop $row
        (br_if $done (i32.ge_u (local.get $out) (local.get $last)))
        (local.set $a (v128.const f32x4 0 0 0 0))
        (local.set $b (v128.const f32x4 0 0 0 0))
        (local.set $c (v128.const f32x4 0 0 0 0))
        (local.set $d (v128.const f32x4 0 0 0 0))
        (local.set $p (local.get $x))
        (loop $columns
          (local.set $a (f32x4.add (local.get $a)
            (f32x4.mul (v128.load (local.get $w)) (v128.load (local.get $p)))))
          (local.set $b (f32x4.add (local.get $b)
            (f32x4.mul (v128.load offset=16 (local.get $w)) (v128.load offset=16 (local.get $p)))))
          (local.set $c (f32x4.add (local.get $c)
            (f32x4.mul (v128.load offset=32 (local.get $w)) (v128.load offset=32 (local.get $p)))))
          (local.set $d (f32x4.add (local.get $d)
            (f32x4.mul (v128.load offset=48 (local.get $w)) (v128.load offset=48 (local.get $p)))))
          (local.set $w (i32.add (local.get $w) (i32.const 64)))
          (local.set $p (i32.add (local.get $p) (i32.const 64)))
          (br_if $columns (i32.lt_u (local.get $p) (local.get $end))))
        (f32.store (local.get $out) (call $sum (local.get $a) (local.get $b) (local.get $c) (local.get $d)))
        (local.set $out (i32.add (local.get $out) (i32.const 4)))
        (br $row))))

  ;; out[r] = scale[r] * sum over c of w[r, c] x[c]; w int8, scale float32
  (func (export "rows_i8")
    (param $out i32) (param $w i32) (param $scale i32) (param $x i32) (param $rows i32) (param $stride i32)
    (local $end i32) (local $last i32) (local $p i32) (local $bytes v128) (local $half v128)
    (local $a v128) (local $b v128) (local $c v128) (local $d v128)
    (local.set $last (i32.add (local.get $out) (i32.shl (local.get $rows) (i32.const 2))))
    (local.set $end (i32.add (local.get $x) (i32.shl (local.get $stride) (i32.const 2))))
    (block $done
      (loop $row
        (br_if $done (i32.ge_u (local.get $out) (local.get $last)))
        (local.set $a (v128.const f32x4 0 0 0 0))
        (local.set $b (v128.const f32x4 0 0 0 0))
        (local.set $c (v128.const f32x4 0 0 0 0))
        (local.set $d (v128.const f32x4 0 0 0 0))
        (local.set $p (local.get $x))
        (loop $columns
          (local.set $bytes (v128.load (local.get $w)))
          (local.set $half (i16x8.extend_low_i8x16_s (local.get $bytes)))
          (local.set $a (f32x4.add (local.get $a) (f32x4.mul
            (f32x4.convert_i32x4_s (i32x4.extend_low_i16x8_s (local.get $half))) (v128.load (local.get $p)))))
          (local.set $b (f32x4.add (local.get $b) (f32x4.mul
            (f32x4.convert_i32x4_s (i32x4.extend_high_i16x8_s (local.get $half))) (v128.load offset=16 (local.get $p)))))
          (local.set $half (i16x8.extend_high_i8x16_s (local.get $bytes)))
          (local.set $c (f32x4.add (local.get $c) (f32x4.mul
            (f32x4.convert_i32x4_s (i32x4.extend_low_i16x8_s (local.get $half))) (v128.load offset=32 (local.get $p)))))
          (local.set $d (f32x4.add (local.get $d) (f32x4.mul
            (f32x4.convert_i32x4_s (i32x4.extend_high_i16x8_s (local.get $half))) (v128.load offset=48 (local.get $p)))))
          (local.set $w (i32.add (local.get $w) (i32.const 16)))
          (local.set $p (i32.add (local.get $p) (i32.const 64)))
          (br_if $columns (i32.lt_u (local.get $p) (local.get $end))))
        (f32.store (local.get $out) (f32.mul (f32.load (local.get $scale))
          (call $sum (local.get $a) (local.get $b) (local.get $c) (local.get $d))))
        (local.set $scale (i32.add (local.get $scale) (i32.const 4)))
        (local.set $out (i32.add (local.get $out) (i32.const 4)))
        (br $row))))

  ;; out[r] = scale[r] * sum over c of w[r, c] x[c]; w int16, scale float32
  (func (export "rows_i16")
    (param $out i32) (param $w i32) (param $scale i32) (param $x i32) (param $rows i32) (param $stride i32)
    (local $end i32) (local $last i32) (local $p i32) (local $half v128)
    (local $a v128) (local $b v128) (local $c v128) (local $d v128)
    (local.set $last (i32.add (local.get $out) (i32.shl (local.get $rows) (i32.const 2))))
    (local.set $end (i32.add (local.get $x) (i32.shl (local.get $stride) (i32.const 2))))
    (block $done
      (loop $row
        (br_if $done (i32.ge_u (local.get $out) (local.get $last)))
        (local.set $a (v128.const f32x4 0 0 0 0))
        (local.set $b (v128.const f32x4 0 0 0 0))
        (local.set $c (v128.const f32x4 0 0 0 0))
        (local.set $d (v128.const f32x4 0 0 0 0))
        (local.set $p (local.get $x))
        (loop $columns
          (local.set $half (v128.load (local.get $w)))
          (local.set $a (f32x4.add (local.get $a) (f32x4.mul
            (f32x4.convert_i32x4_s (i32x4.extend_low_i16x8_s (local.get $half))) (v128.load (local.get $p)))))
          (local.set $b (f32x4.add (local.get $b) (f32x4.mul
            (f32x4.convert_i32x4_s (i32x4.extend_high_i16x8_s (local.get $half))) (v128.load offset=16 (local.get $p)))))
          (local.set $half (v128.load offset=16 (local.get $w)))
          (local.set $c (f32x4.add (local.get $c) (f32x4.mul
            (f32x4.convert_i32x4_s (i32x4.extend_low_i16x8_s (local.get $half))) (v128.load offset=32 (local.get $p)))))
          (local.set $d (f32x4.add (local.get $d) (f32x4.mul
            (f32x4.convert_i32x4_s (i32x4.extend_high_i16x8_s (local.get $half))) (v128.load offset=48 (local.get $p)))))
          (local.set $w (i32.add (local.get $w) (i32.const 32)))
          (local.set $p (i32.add (local.get $p) (i32.const 64)))
          (br_if $columns (i32.lt_u (local.get $p) (local.get $end))))
        (f32.store (local.get $out) (f32.mul (f32.load (local.get $scale))
          (call $sum (local.get $a) (local.get $b) (local.get $c) (local.get $d))))
        (local.set $scale (i32.add (local.get $scale) (i32.const 4)))
        (local.set $out (i32.add (local.get $out) (i32.const 4)))
        (br $row))))

  ;; out[c] = sum over r of share[r] w[r, c]; w float32
  (func (export "mix_f32") (param $out i32) (param $w i32) (param $share i32) (param $rows i32) (param $stride i32)
    (local $end i32) (local $last i32) (local $p i32) (local $s v128)
    (local.set $end (i32.add (local.get $out) (i32.shl (local.get $stride) (i32.const 2))))
    (local.set $last (i32.add (local.get $share) (i32.shl (local.get $rows) (i32.const 2))))
    (local.set $p (local.get $out))
    (loop $clear
      (v128.store (local.get $p) (v128.const f32x4 0 0 0 0))
      (local.set $p (i32.add (local.get $p) (i32.const 16)))
      (br_if $clear (i32.lt_u (local.get $p) (local.get $end))))
    (block $done
      (loop $row
        (br_if $done (i32.ge_u (local.get $share) (local.get $last)))
        (local.set $s (f32x4.splat (f32.load (local.get $share))))
        (local.set $p (local.get $out))
        (loop $columns
          (v128.store (local.get $p) (f32x4.add (v128.load (local.get $p))
            (f32x4.mul (local.get $s) (v128.load (local.get $w)))))
          (v128.store offset=16 (local.get $p) (f32x4.add (v128.load offset=16 (local.get $p))
            (f32x4.mul (local.get $s) (v128.load offset=16 (local.get $w)))))
          (v128.store offset=32 (local.get $p) (f32x4.add (v128.load offset=32 (local.get $p))
            (f32x4.mul (local.get $s) (v128.load offset=32 (local.get $w)))))
          (v128.store offset=48 (local.get $p) (f32x4.add (v128.load offset=48 (local.get $p))
            (f32x4.mul (local.get $s) (v128.load offset=48 (local.get $w)))))
          (local.set $w (i32.add (local.get $w) (i32.const 64)))
          (local.set $p (i32.add (local.get $p) (i32.const 64)))
          (br_if $columns (i32.lt_u (local.get $p) (local.get $end))))
        (local.set $share (i32.add (local.get $share) (i32.const 4)))
        (br $row))))

  (func $sum (param $a v128) (param $b v128) (param $c v128) (param $d v128) (result f32)
    (local.set $a (f32x4.add (f32x4.add (local.get $a) (local.get $b)) (f32x4.add (local.get $c) (local.get $d))))
    (f32.add
      (f32.add (f32x4.extract_lane 0 (local.get $a)) (f32x4.extract_lane 1 (local.get $a)))
      (f32.add (f32x4.extract_lane 2 (local.get $a)) (f32x4.extract_lane 3 (local.get $a))))))
