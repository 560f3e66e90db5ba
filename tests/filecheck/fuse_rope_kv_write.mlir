// RUN: fuse-rope-kv-write
module {
  func.func @step() -> tensor<?x4x8xf32> {
    %q = "ts.input"() {sym = "q"} : () -> tensor<?x4x8xf32>
    %k = "ts.input"() {sym = "k"} : () -> tensor<?x2x8xf32>
    %cos = "ts.input"() {sym = "cos"} : () -> tensor<?x8xf32>
    %sin = "ts.input"() {sym = "sin"} : () -> tensor<?x8xf32>
    %rq = "ts.rope"(%q, %cos, %sin) : (tensor<?x4x8xf32>, tensor<?x8xf32>, tensor<?x8xf32>) -> tensor<?x4x8xf32>
    %rk = "ts.rope"(%k, %cos, %sin) : (tensor<?x2x8xf32>, tensor<?x8xf32>, tensor<?x8xf32>) -> tensor<?x2x8xf32>
    %a = "ts.attention"(%rq, %rk, %k) {label = "attention", layer = "3", scale = 0.5 : f64, window = 7 : i64} : (tensor<?x4x8xf32>, tensor<?x2x8xf32>, tensor<?x2x8xf32>) -> tensor<?x4x8xf32>
    // k is turned by another table than q: not fused
    %rk2 = "ts.rope"(%k, %sin, %cos) : (tensor<?x2x8xf32>, tensor<?x8xf32>, tensor<?x8xf32>) -> tensor<?x2x8xf32>
    %b = "ts.attention"(%rq, %rk2, %k) {layer = "4", scale = 0.5 : f64, window = 0 : i64} : (tensor<?x4x8xf32>, tensor<?x2x8xf32>, tensor<?x2x8xf32>) -> tensor<?x4x8xf32>
    // q is not turned at all: not fused
    %c = "ts.attention"(%a, %rk, %k) {layer = "5", scale = 0.5 : f64, window = 0 : i64} : (tensor<?x4x8xf32>, tensor<?x2x8xf32>, tensor<?x2x8xf32>) -> tensor<?x4x8xf32>
    %bc = "ts.add"(%b, %c) : (tensor<?x4x8xf32>, tensor<?x4x8xf32>) -> tensor<?x4x8xf32>
    return %bc : tensor<?x4x8xf32>
  }
}
// CHECK: [[RQ:%[0-9]+]] = "ts.rope"(%0, %2, %3)
// CHECK-NEXT: [[RK:%[0-9]+]] = "ts.rope"(%1, %2, %3)
// CHECK-NEXT: [[W:%[0-9]+]] = "ts.rope_kv_write"(%0, %1, %1, %2, %3) {label = "attention", layer = "3"}
// CHECK-NEXT: [[A:%[0-9]+]] = "ts.cached_attention"([[W]]) {kv_heads = 2 : i64, label = "attention", layer = "3", scale = 5.000000e-01 : f64, window = 7 : i64}
// CHECK-NEXT: [[RK2:%[0-9]+]] = "ts.rope"(%1, %3, %2)
// CHECK-NEXT: "ts.attention"([[RQ]], [[RK2]], %1) {layer = "4"
// CHECK-NEXT: "ts.attention"([[A]], [[RK]], %1) {layer = "5"
// CHECK-NOT: rope_kv_write
