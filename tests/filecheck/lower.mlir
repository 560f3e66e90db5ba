// RUN: select lower
// The add that makes the next layer's state reads the old one for the last time: it writes in its place. Windows are views.
module {
  func.func @step() -> tensor<?x8xf32> {
    %ids = "ts.input"() {sym = "token_ids"} : () -> tensor<?xi32>
    %t = "ts.weight"() {parameters = ["embed"], sym = "embed"} : () -> tensor<50x8xf32>
    %x = "ts.embedding"(%ids, %t) : (tensor<?xi32>, tensor<50x8xf32>) -> tensor<?x8xf32>
    %out = "ts.repeat"(%x) ({
    ^bb0(%h: tensor<?x8xf32>):
      %w = "ts.weight"() {parameters = ["w.{i}"], sym = "w.{i}"} : () -> tensor<16x8xf32>
      %y = "ts.linear"(%h, %w) {operandSegmentSizes = array<i32: 1, 1, 0>} : (tensor<?x8xf32>, tensor<16x8xf32>) -> tensor<?x16xf32>
      %g = "ts.slice"(%y) {start = 0 : i64} : (tensor<?x16xf32>) -> tensor<?x8xf32>
      %u = "ts.slice"(%y) {start = 8 : i64} : (tensor<?x16xf32>) -> tensor<?x8xf32>
      %a = "ts.gated_activation"(%g, %u) {activation = "silu"} : (tensor<?x8xf32>, tensor<?x8xf32>) -> tensor<?x8xf32>
      %next = "ts.add"(%h, %a) : (tensor<?x8xf32>, tensor<?x8xf32>) -> tensor<?x8xf32>
      "ts.yield"(%next) {operandSegmentSizes = array<i32: 1>} : (tensor<?x8xf32>) -> ()
    }) {count = 3 : i64, first = 1 : i64, operandSegmentSizes = array<i32: 1>, resultSegmentSizes = array<i32: 1>, stride = 2 : i64} : (tensor<?x8xf32>) -> tensor<?x8xf32>
    %rows = "ts.input"() {sym = "logit_rows"} : () -> tensor<?xi32>
    %last = "ts.gather_rows"(%out, %rows) : (tensor<?x8xf32>, tensor<?xi32>) -> tensor<?x8xf32>
    return %last : tensor<?x8xf32>
  }
}
// CHECK: buffer tokens.0 i32['rows']
// CHECK-NEXT: buffer embedding.1 f32['rows', 8]
// CHECK-NEXT: buffer linear.2 f32['rows', 16]
// CHECK-NOT: buffer add
// CHECK: buffer logits f32['logit_rows', 8]
// CHECK-NEXT: view slice.3 of linear.2 ['rows', 8] at 0 by [16, 1]
// CHECK-NEXT: view slice.4 of linear.2 ['rows', 8] at 8 by [16, 1]
// CHECK-NEXT: take_last_tokens(token_ids, row_slots, last_tokens) -> tokens.0
// CHECK-NEXT: embedding(tokens.0, embed) -> embedding.1
// CHECK-NEXT: repeat 3 times from 1 by 2
// CHECK-NEXT: linear_onednn(embedding.1, w.{i}) -> linear.2
// CHECK-NEXT: gated_activation(slice.3, slice.4) -> gated_activation.5 {'activation': 'silu'}
// CHECK-NEXT: add(embedding.1, gated_activation.5) -> embedding.1
// CHECK-NEXT: gather_rows(embedding.1, logit_rows) -> logits
